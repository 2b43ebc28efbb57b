"""The folder of a run: who may write to it, how far the run in it is, and the files every run leaves behind.

| file | content |
|------|---------|
| config.yaml | the whole config |
| env.json | versions, commit, command, machine, seed in use, earlier starts |
| log.txt, metrics.jsonl, tensorboard/ | the course of the run, for people, programs and TensorBoard |
| <model>/model.pth.tar-<epoch>, checkpoint, model-best.pth.tar | checkpoints, as in Dassl |
| resume.pth.tar | the state to continue from, until the run is done |
| result.json, DONE | written last, in this order |
| FAILED | the error of the last start, until the next one |
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
from yacs.config import CfgNode

from dassl.evaluation.evaluator import CONFUSION, PREDICTIONS
from dassl.utils import distributed, environment, read_json, write_text
from dassl.utils.checksums import MANIFEST, check_sum, recorded_write, remove_recorded
from dassl.utils.errors import error_line
from dassl.utils.torchtools import BEST_MODEL, POINTER

from .records import FILE_NAME as METRICS
from .records import plain
from .status import (
    CONFIG,
    DONE,
    ENVIRONMENT,
    FAILED,
    LOCK,
    RESULT,
    RESUME,
    check_same_config,
    read_result,
    resume_file,
    run_state,
)

MARKER = ".run"  # in every folder that a run has written to
# Names of the files of a run that are written beside their place first.
_OWN = (
    MARKER,
    MANIFEST,
    "clip.safetensors",
    CONFIG,
    ENVIRONMENT,
    RESULT,
    METRICS,
    DONE,
    FAILED,
    RESUME,
    POINTER,
    "model.pth.tar-",
    BEST_MODEL,
    CONFUSION,
    PREDICTIONS,
)
# Entries of result.json that only a training can fill.
_OF_TRAINING = (
    "mode",
    "epochs",
    "selection",
    "last_epoch",
    "train_seconds",
    "train_images_per_second",
    "peak_memory_mib",
)


class RunInUse(OSError):
    """Another process is at work in the folder."""


class RunFolder:
    """A folder held by one run: `with RunFolder(directory) as folder`. Only the main process locks and writes.

    Nothing is deleted or overwritten that a run did not write: a folder with files of these names and without the
    marker, or env.json, of a run is refused, and only temporary files with the names of a run's files are removed.

    Raises:
        ValueError: the name of the folder is empty or impossible.
        RunInUse: another process holds the folder.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        if not str(directory).strip():
            raise ValueError("OUTPUT_DIR is empty, expected a folder for the files of the run (--output-dir DIR)")
        if "\0" in str(directory):
            raise ValueError(f"OUTPUT_DIR is {str(directory)!r}, expected the name of a folder, which has no null byte")
        self.path = Path(directory)
        self._lock: filelock.BaseFileLock | None = None
        self._started = False

    def __enter__(self) -> RunFolder:
        if distributed.is_main_process():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = filelock.FileLock(self.path / LOCK)
                lock.acquire(timeout=0)
            except filelock.Timeout as err:
                raise RunInUse(
                    f'OUTPUT_DIR "{self.path}" is in use by another run; wait until that run has ended, '
                    "or use another folder"
                ) from err
            except OSError as err:
                dangling = self.path.is_symlink() and not self.path.exists()
                reason = "it is a link to a place that is not there" if dangling else err.strerror or err
                raise OSError(err.errno, f'cannot use "{self.path}" as OUTPUT_DIR: {reason}') from err
            self._lock = lock  # the operating system releases it when the process dies
        return self

    def __exit__(self, kind: Any, err: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(err, Exception) and self._started:
                self._fail(err)
        finally:
            if self._lock is not None:
                self._lock.release()

    @property
    def state(self) -> str:
        """As of `run_state`, the same in every process."""
        return distributed.broadcast_object(run_state(self.path))

    def check(self, cfg: CfgNode, mode: str) -> None:
        """Check that what the folder holds can be continued, reused or evaluated by a run of this config and mode.

        Raises:
            ValueError: the folder holds files or checkpoints of another program, which a run would overwrite; or a run
                with another config; or a training that is not done, where an evaluation would be taken for its result;
                or an evaluation, where a training is asked for.
        """
        saved = resume_file(self.path).is_file() or any(self.path.glob("*/model*.pth.tar*"))
        state, config = self.state, self.path / CONFIG
        self._check_own()
        if not (saved or state == "done"):
            return  # nothing is there that could be lost or mixed up
        if not config.is_file():
            if mode == "train" and not cfg.RESUME:
                raise ValueError(
                    f'"{self.path}" holds checkpoints but no {CONFIG}, so another program made them; continue them '
                    f'with --resume "{self.path}", or use another OUTPUT_DIR'
                )
            return
        check_sum(config)
        check_same_config(config.read_text(encoding="utf-8", errors="replace"), cfg, str(self.path))
        if mode == "eval" and state != "done":
            raise ValueError(
                f'"{self.path}" holds a training that is not done; finish it first with the same command without '
                "--eval-only, or evaluate into another OUTPUT_DIR"
            )
        if mode == "train" and state == "done" and read_result(self.path).get("mode") != "train":
            raise ValueError(f'"{self.path}" holds an evaluation (--eval-only); train into another OUTPUT_DIR')

    def _check_own(self) -> None:
        """ValueError if the folder has files with a run's names that no run wrote."""
        if (self.path / MARKER).is_file():
            return
        with contextlib.suppress(ValueError):  # of a run before there were markers
            if "earlier_starts" in _earlier(self.path / ENVIRONMENT):
                return
        foreign = [name for name in (CONFIG, ENVIRONMENT, RESULT, METRICS, DONE) if (self.path / name).exists()]
        if foreign:
            raise ValueError(
                f'"{self.path}" holds {", ".join(foreign)}, written by another program, which a run would overwrite; '
                "use another OUTPUT_DIR"
            )

    def _remove_left_over(self) -> None:
        """Remove the temporary files that killed runs left: by their own names, and of no process that lives."""
        below = [
            path
            for path in self.path.glob("*/.*.tmp")
            if path.name.startswith((".model", f".{POINTER}.", f".{MANIFEST}."))
        ]
        for path in (*self.path.glob(".*.tmp"), *below):
            found = re.fullmatch(r"\.(.+)\.(\d+)-[0-9a-f]{8}\.tmp", path.name)
            if found and found[1].startswith(_OWN) and not _lives(int(found[2])):
                path.unlink(missing_ok=True)

    def start(self, cfg: CfgNode, mode: str, command: Sequence[str] = ()) -> int:
        """Write config.yaml and env.json and forget an earlier failure.

        Args:
            mode: train, eval or none.
            command: the arguments of the command line, for env.json.

        Returns:
            The seed in use: SEED, or if that is negative a random one, which later starts of the same run use again.
        """
        seed = cfg.SEED
        self._started = True
        if distributed.is_main_process():
            earlier = _earlier(self.path / ENVIRONMENT) if run_state(self.path) != "new" else {}
            if seed < 0:
                known = earlier.get("seed")
                seed = known if isinstance(known, int) and known >= 0 else secrets.randbelow(2**31)
            self._remove_left_over()
            if not (self.path / MARKER).exists():
                write_text("The files here are those of a run, which writes over them.\n", self.path / MARKER)
            (self.path / FAILED).unlink(missing_ok=True)
            text = cfg.dump()
            recorded_write(self.path / CONFIG, lambda file: file.write(text.encode()))
            _write_json({**_started(mode, seed, command), "earlier_starts": _starts(earlier)}, self.path / ENVIRONMENT)
        return distributed.broadcast_object(seed)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, then DONE, then drop the resume state, which nothing needs any more.

        The costs of a training stay in its result when its model is evaluated again in the same folder.
        """
        if distributed.is_main_process():
            before = read_result(self.path) if run_state(self.path) == "done" else {}
            if before.get("mode") == "train" and result["mode"] == "eval":
                result = {**result, **{name: before.get(name) for name in _OF_TRAINING}}
            _write_json(plain(result), self.path / RESULT)
            write_text(time.strftime("%Y-%m-%dT%H:%M:%S%z") + "\n", self.path / DONE)
            self.drop_resume_state()
        distributed.barrier()

    def drop_resume_state(self) -> None:
        """Remove the resume state of a run that is done, also one that was killed when it was about to."""
        if self._lock is not None:
            remove_recorded(resume_file(self.path))
            self._remove_left_over()

    def _fail(self, err: Exception) -> None:
        """Write FAILED with the error, and its traceback to log.txt. A run that is done stays done."""
        if self._lock is None:
            return
        trace = "".join(traceback.format_exception(err))
        with contextlib.suppress(OSError):  # the error itself may be that nothing can be written
            with open(self.path / "log.txt", "a", encoding="utf-8") as file:
                file.write(trace)
            if run_state(self.path) != "done":
                write_text(error_line(err) + "\n", self.path / FAILED)


def _lives(pid: int) -> bool:
    """True if another process has this number, here where the folder itself is held."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _started(mode: str, seed: int, command: Sequence[str]) -> dict[str, Any]:
    return {
        "mode": mode,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "directory": os.getcwd(),
        "git": git_state(),
        "seed": seed,
        "processes": distributed.get_world_size(),
        "pid": os.getpid(),
        **environment(),
    }


def _write_json(content: dict[str, Any], path: Path) -> None:
    text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
    recorded_write(path, lambda file: file.write(text.encode()))


def _earlier(path: Path) -> dict[str, Any]:
    """env.json of earlier starts, empty without one; ValueError if it is damaged, as it has the seed of the run."""
    if not path.is_file():
        return {}
    check_sum(path)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("earlier_starts", []), list):
        raise ValueError(f'"{path}" is damaged; delete it to go on without it (a run without SEED then draws another)')
    return content


def _starts(earlier: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier starts, oldest first, shortened to what can differ between starts of one run."""
    if not earlier:
        return []
    names = ("mode", "started", "command", "git", "processes", "versions")
    last = {name: earlier.get(name) for name in names}
    return [*earlier.get("earlier_starts", []), last]


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this code runs from and whether files in it were changed; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": answers[0], "dirty": bool(answers[1])}
