"""One line that says what went wrong, with advice where the machine ran out of something."""

from __future__ import annotations

import os
import re
import shutil
import traceback

SHARED_MEMORY = "/dev/shm"
_WORKER = r"DataLoader worker \(pid\(?s?\)? [^)]*\)+ (?:is killed by signal: (?P<signal>.+?)\.|exited unexpectedly)"
_NO_GPU = r"Torch not compiled with CUDA enabled|Found no NVIDIA driver|No CUDA GPUs are available"
_ADVICE = (
    (
        r"unable to (?:allocate|open) shared memory|unable to (?:open|resize|mmap|write) .*/torch_\d+_\d+",
        "the shared memory of the machine is used up{shm}; use DATALOADER.NUM_WORKERS 0 or fewer workers, or give it "
        "more (docker run --shm-size 8g, or --ipc=host)",
    ),
    (
        r"(?:received 0 items of ancdata|Too many open files)",
        "too many files are open at once; use fewer workers (DATALOADER.NUM_WORKERS), or raise the limit "
        "(ulimit -n 65536)",
    ),
    (
        r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        "the GPU has no memory left ({line}); set TRAIN.MEMORY_BUDGET to the GiB a step may take, or a smaller "
        "DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE, or PREC amp, and see what else uses the GPU "
        "(nvidia-smi)",
    ),
    (
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|Cannot allocate memory",
        "the machine has no memory left ({line}); set TRAIN.MEMORY_BUDGET to the GiB a step may take, or a smaller "
        "DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE, or fewer workers (DATALOADER.NUM_WORKERS)",
    ),
)


def lost_worker(err: BaseException) -> bool:
    """True if a process that loads data died or found no shared memory, which fewer of them may spare."""
    text = str(err)
    return isinstance(err, (RuntimeError, OSError)) and bool(
        re.search(_WORKER, text) or re.search(_ADVICE[0][0], text) or re.search(_ADVICE[1][0], text)
    )


def resource_advice(err: BaseException) -> str:
    """One line, with advice, about what the machine lacks (memory, files, a GPU, ...); "" for other errors."""
    text = str(err)
    line = text.strip().splitlines()[0][:200] if text.strip() else type(err).__name__
    if isinstance(err, RuntimeError) and (found := re.search(_WORKER, text)):
        signal = found["signal"] or "ended unexpectedly"
        cause = "perhaps for lack of shared memory" if "Bus error" in signal else "most likely for lack of memory"
        return (
            f"a process that loads data was ended from outside ({signal}), {cause}{_shm() if 'Bus' in signal else ''}; "
            "use fewer of them (DATALOADER.NUM_WORKERS, 0 loads in the main process). What was saved is kept: the same "
            "command goes on after the last whole epoch"
        )
    if isinstance(err, (AssertionError, RuntimeError)) and re.search(_NO_GPU, text):
        return _no_gpu(err)
    if isinstance(err, (RuntimeError, OSError, MemoryError)):
        for pattern, advice in _ADVICE:
            if re.search(pattern, text):
                return advice.format(shm=_shm(), line=line)
    if isinstance(err, MemoryError):
        return _ADVICE[-1][1].format(line=line)
    return ""


def _no_gpu(err: BaseException) -> str:
    """Names the line that asks for a GPU: the last one outside torch."""
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if "torch" not in frame.filename.split(os.sep)]
    place = f"{frames[-1].filename}, line {frames[-1].lineno}, `{frames[-1].line}`" if frames else "a line"
    advice = "write .to(self.device) in the place of .cuda(), or set USE_CUDA False"
    return f"{place} asks for a GPU, and there is none here; {advice}"


def _shm() -> str:
    """Free and total size of the shared memory, in brackets; "" where there is none to be seen."""
    if not os.path.isdir(SHARED_MEMORY):
        return ""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f" ({SHARED_MEMORY} has {usage.free // 2**20} of {usage.total // 2**20} MiB free)"


def error_line(err: BaseException) -> str:
    """The error in one line: advice for lack of memory and the like, else its message without the quotes that a
    KeyError puts around it and without the number of an OSError."""
    advice = resource_advice(err)
    if advice:
        return advice
    if isinstance(err, OSError) and err.strerror:
        text = err.strerror if err.filename is None else f'{err.strerror}: "{err.filename}"'
    elif isinstance(err, KeyError) and type(err).__str__ is KeyError.__str__ and err.args:
        text = str(err.args[0])
        text = text if " " in text else f"KeyError: {text!r}"  # a bare key says nothing
    elif isinstance(err, UnicodeEncodeError):
        place = err.object[max(0, err.start - 80) : err.end + 40].splitlines()[0]
        text = f"a name is not text in {err.encoding} ({place!r}); rename the file or folder"
    else:
        text = str(err)
    return text or type(err).__name__
