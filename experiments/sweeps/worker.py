"""One run in a separate process.

The process is a fork of one that has imported everything, so that it starts in milliseconds and yet has memory figures,
random states and CUDA devices of its own, and a crash takes nothing else with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import torch

import datasets  # noqa: F401 - registers the data sets
import dense  # noqa: F401 - registers the dense tasks
import trainers  # noqa: F401 - registers the methods
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, command
from dassl.engine.run import RunInUse
from dassl.engine.status import run_state
from dassl.utils.errors import error_line
from experiments.status import CLAIM

STDERR = "stderr.txt"  # what the last attempt of a run wrote to stderr
ORPHAN_SECONDS = 30  # an orphan may finish its epoch's files for so long

for registry in (DATASET_REGISTRY, TRAINER_REGISTRY):
    registry.registered_names()  # imports all of them here, once, and not in every fork


class Outcome(NamedTuple):
    """`kind`: done, elsewhere (done by another sweep meanwhile), failed, busy (another process has the folder) or
    stopped (by a signal); seconds of the attempt."""

    kind: str
    error: str = ""
    seconds: float | None = None


class Limits(NamedTuple):
    """Resources of a run: CUDA_VISIBLE_DEVICES and CPU threads; None leaves the setting of the environment."""

    devices: str | None = None
    threads: int | None = None


def work(argv: Sequence[str], output_dir: str, limits: Limits, answer: Connection, begin: Callable[[], None]) -> None:
    """Do a run and send its Outcome; the target of a process. The process heads a group, so that all of it can end."""
    if hasattr(os, "setsid"):
        with contextlib.suppress(PermissionError):  # is a head already
            os.setsid()
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), _interrupt)
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a cluster's warning, which is for the sweep
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if limits.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = limits.devices  # read when CUDA is first used, which is later
    if limits.threads is not None:
        torch.set_num_threads(limits.threads)
    started = time.monotonic()
    outcome = attempt(argv, Path(output_dir), begin)
    answer.send(outcome._replace(seconds=round(time.monotonic() - started, 3)))


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Stop the run as Ctrl-C would when the sweep is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)


def attempt(argv: Sequence[str], output_dir: Path, begin: Callable[[], None] = lambda: None) -> Outcome:
    """Do a run unless it is done or another process is at it. A claim makes sure that two sweeps never do it twice.

    `begin` is called once the run is this process's to do.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        claim = filelock.FileLock(output_dir / CLAIM)
        with claim.acquire(timeout=0):
            if run_state(output_dir) == "done":
                return Outcome("elsewhere")
            begin()
            _quiet(output_dir / STDERR)
            command.run(argv)
            return Outcome("done")
    except (filelock.Timeout, RunInUse) as err:
        return Outcome("busy", error_line(err))
    except KeyboardInterrupt:
        return Outcome("stopped", "stopped by a signal")
    except SystemExit:  # argparse has said why on stderr
        return Outcome("failed", last_line(output_dir / STDERR) or "bad arguments")
    except Exception as err:  # noqa: BLE001 - whatever a run raises is its error; the engine keeps the traceback
        return Outcome("failed", error_line(err))


def _quiet(errors: Path) -> None:
    """Send stdout nowhere (log.txt has it) and stderr to a file, also that of native code."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing, open(errors, "wb") as file:
        os.dup2(nothing.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(file=2)


def last_line(path: Path) -> str:
    """Last line of a text file that says something, "" if there is none."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")
    return ""
