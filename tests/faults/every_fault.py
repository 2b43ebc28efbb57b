"""A fault at every write, rename, fsync, unlink and read of a tiny run: `python tests/faults/every_fault.py`.

Every trial is a run in a process of its own that is killed, or whose system call fails, at one point; then the same
command runs to its end. Its weights, records, results and sums must be those of a run without a fault. Faults of reads
(images, configs, states) meet a run that goes on after a kill, which reads most.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter as Counts
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "dassl" / "engine")]
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402 - after the number of threads
import torch.utils.tensorboard  # noqa: E402 - imported once, not in every fork
from tiny_runs import tiny_arguments  # noqa: E402

import train  # noqa: E402
from dassl.engine.command import run  # noqa: E402
from dassl.utils.checksums import problems_below  # noqa: E402

SHORT = ("OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 2)
SETUPS: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "best": ("TEST.FINAL_MODEL", "best_val"),
    "checkpoints": ("TRAIN.CHECKPOINT_FREQ", 1),
    "adamw": ("OPTIM.NAME", "adamw", "OPTIM.WARMUP_EPOCH", -1),
    "amp": ("TRAINER.TINY.PREC", "amp"),
    "accumulate": ("OPTIM.ACCUMULATE", 2),
    "seldom": ("OPTIM.MAX_EPOCH", 3, "TRAIN.RESUME_FREQ", 2),
    "predictions": ("TEST.PREDICTIONS", True, "TEST.COMPUTE_CMAT", True),
    "shots": ("DATASET.NUM_SHOTS", 3),
    "workers": ("DATALOADER.NUM_WORKERS", 1),
    "cache": ("DATALOADER.CACHE", "ram"),
}


class Counter:
    """Counts system calls below a folder, that write or that read, and does something instead of the n-th."""

    def __init__(self, folder: str, nth: int, fault: Callable[[], None]):
        self.folder, self.nth, self.fault, self.count = folder, nth, fault, 0
        self.reads = fault is unreadable

    def __call__(self, path: Any) -> None:
        if not str(path).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.nth:
            self.fault()

    def install(self) -> None:
        real_fsync, real_open = os.fsync, builtins.open
        if self.reads:

            def read(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
                opened = real_open(file, mode, *args, **options)
                if not isinstance(file, (str, os.PathLike)) or set(mode) & set("wxa+"):
                    return opened
                return Read(opened, self, file)

            builtins.open = io.open = read
            return
        names = {"replace": 1, "unlink": 0, "truncate": 0, "mkdir": 0}
        for name, place in names.items():
            setattr(os, name, self._before(getattr(os, name), place))

        def fsync(handle: int) -> None:
            self(os.readlink(f"/proc/self/fd/{handle}"))
            real_fsync(handle)

        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not isinstance(file, (str, os.PathLike)) or not set(mode) & set("wxa+"):
                return real_open(file, mode, *args, **options)
            self(file)
            return Written(real_open(file, mode, *args, **options), self, file)

        os.fsync, builtins.open = fsync, opened

    def _before(self, real: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self(args[place])
            return real(*args, **options)

        return call


class Written:
    """A file whose writes are counted; a fault leaves half of what was to be written."""

    def __init__(self, file: Any, counter: Counter, path: Any):
        self.file, self.counter, self.path = file, counter, path

    def write(self, data: Any) -> int:
        if self.counter.count + 1 == self.counter.nth and str(self.path).startswith(self.counter.folder):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
        self.counter(self.path)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Written:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.file.__exit__(*error)


class Read:
    """A file whose first read is counted; one that fails stays unreadable."""

    def __init__(self, file: Any, counter: Counter, path: Any):
        self.file, self.counter, self.path = file, counter, path
        self.known, self.error = False, None

    def _count(self) -> None:
        if self.error is not None:
            raise self.error
        if not self.known:
            self.known = True
            try:
                self.counter(self.path)
            except OSError as err:
                self.error = err
                raise

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "readline", "readlines", "readinto"):
            self._count()
        return getattr(self.file, name)

    def __iter__(self) -> Any:
        self._count()
        return iter(self.file)

    def __enter__(self) -> Read:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.file.__exit__(*error)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_disk() -> None:
    raise OSError(errno.EIO, "Input/output error")


def unreadable() -> None:
    raise OSError(errno.EIO, "Input/output error")


def in_fork(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do `work` in a fork; its exit status, and what it returned or the text of its error."""
    source, target = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        with os.fdopen(target, "wb") as answer, open(os.devnull, "w") as nothing:
            sys.stdout = sys.stderr = nothing
            torch.set_num_threads(1)
            try:
                value, code = work(), 0
            except BaseException as err:  # noqa: BLE001 - all go to the parent
                value = f"{type(err).__name__}: {err}"
            answer.write(pickle.dumps(value))
            answer.flush()
        os._exit(code)
    os.close(target)
    with os.fdopen(source, "rb") as answer:
        content = answer.read()
    _, status = os.waitpid(pid, 0)
    return status, pickle.loads(content) if content else None


def content_of(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on a fault."""
    result = json.loads((folder / "result.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*/model*.pth.tar*")):
        state = torch.load(path, weights_only=True)
        weights.update(path.name.encode() + pickle.dumps([(k, v.tolist()) for k, v in state["state_dict"].items()]))
        weights.update(repr(state["optimizer"]).encode())
    names = ("accuracy", "ece", "macro_f1", "counts", "fingerprint_hash", "epochs", "selection")
    return {
        "result": {name: result[name] for name in names},
        "records": [{k: v for k, v in record.items() if "seconds" not in k} for record in records],
        "weights": weights.hexdigest(),
        "sums": problems_below(folder),
        "left": sorted(
            path.name for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == "resume.pth.tar"
        ),
        "files": sorted(path.name for path in folder.iterdir()),
        "events": len(list((folder / "tensorboard").glob("*"))) > 0,
    }


class Bench:
    """Trials of one set-up below a folder."""

    def __init__(self, setup: str, place: Path):
        self.setup, self.place = setup, place
        self.options = (*SHORT, "DATASET.CACHE_DIR", place / "picks", *SETUPS[setup])
        self.whole = self.finish("whole")
        _, self.calls = self.faulty("counted", 0, killed)
        self.faulty("stopped", self.calls * 2 // 3, killed)
        shutil.copytree(self.place / "stopped", self.place / "read")
        _, self.reads = self.faulty("read", 0, unreadable)

    def command(self, output: str) -> list[str]:
        return tiny_arguments(self.place / "images", self.place / output, *self.options)

    def finish(self, output: str) -> dict[str, Any]:
        status, answer = in_fork(lambda: (run(self.command(output)), content_of(self.place / output))[1])
        if status != 0:
            raise AssertionError(f"the run did not end: {answer}")
        return answer

    def faulty(self, output: str, nth: int, fault: Callable[[], None]) -> tuple[int, Any]:
        def work() -> int:
            folder = self.place if fault is unreadable else self.place / output
            counter = Counter(str(folder), nth, fault)
            counter.install()
            run(self.command(output))
            return counter.count

        return in_fork(work)

    def trial(self, nth: int, fault: Callable[[], None]) -> str:
        """One fault, then the same command again; "" or how it differs from a run without a fault."""
        if fault is unreadable:
            shutil.copytree(self.place / "stopped", self.place / "trial")
        status, answer = self.faulty("trial", nth, fault)
        clear = ("OSError", "ValueError", "FileNotFoundError")
        try:
            if fault is not killed and status != 0 and not str(answer).startswith(clear):
                return f"the error is not clear: {answer}"
            found = self.finish("trial")
            return "; ".join(
                f"{name}: {found[name]} != {self.whole[name]}" for name in found if found[name] != self.whole[name]
            )
        except AssertionError as err:
            return str(err)
        finally:
            shutil.rmtree(self.place / "trial", ignore_errors=True)


FAULTS = {"kill": killed, "full": full_disk, "broken": broken_disk, "read": unreadable}


def chosen(calls: int, number: int, turn: int) -> list[int]:
    """`number` of the calls 1 to `calls`, evenly spread; others in every `turn`; all for 0."""
    if not 0 < number < calls:
        return list(range(1, calls + 1))
    return sorted({1 + int((place + turn * 0.618) * calls / number) % calls for place in range(number)})


def run_trials(setup: str, numbers: dict[str, int]) -> tuple[Counts, list[str]]:
    """Faults of a set-up, so many of each kind; how many were tried, and what went wrong."""
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(setup, Path(place))
        trials, wrong = Counts(), []
        for kind, number in numbers.items():
            calls = bench.reads if FAULTS[kind] is unreadable else bench.calls
            for nth in chosen(calls, number, list(SETUPS).index(setup)):
                trials[kind] += 1
                difference = bench.trial(nth, FAULTS[kind])
                if difference:
                    wrong.append(f"{setup}, {kind} at call {nth} of {calls}: {difference}")
        return trials, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills in each set-up, evenly spread; 0: at every call")
    parser.add_argument("--others", type=int, default=4, help="faults of each other kind in each set-up; 0: all")
    parser.add_argument("--setups", default=",".join(SETUPS), help="of " + ", ".join(SETUPS))
    parser.add_argument("--faults", default=",".join(FAULTS), help="of " + ", ".join(FAULTS))
    args = parser.parse_args()
    assert train.run  # registers trainers and data sets
    numbers = {kind: args.kills if kind == "kill" else args.others for kind in args.faults.split(",")}
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        run(tiny_arguments(Path(place) / "images", Path(place) / "run", *SHORT))  # imports what forks would
    total, failed, start = Counts(), 0, time.monotonic()
    for setup in args.setups.split(","):
        trials, wrong = run_trials(setup, numbers)
        total, failed = total + trials, failed + len(wrong)
        print(f"{setup}: {_text(trials)}, {len(wrong)} differ", *wrong, sep="\n  ", flush=True)
    used = sum(os.times()[:4])
    print(f"{_text(total)}, {failed} differ, {time.monotonic() - start:.0f} s, {used:.0f} s of processor time")
    return 1 if failed else 0


def _text(counts: Counts) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())


if __name__ == "__main__":
    sys.exit(main())
