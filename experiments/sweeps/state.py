"""How far runs are, read from their folders."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import filelock

from dassl.engine.command import build_config, build_parser
from dassl.engine.resume import check_same_config
from dassl.engine.run import CONFIG, DONE, ENVIRONMENT, FAILED, LOCK, run_state
from dassl.utils import read_json
from dassl.utils.errors import error_line
from experiments import Run
from experiments.reports.readings import finished_result
from experiments.sweeps.journal import Event

CLAIM = ".claim"  # held by the sweep that does a run; the engine's own lock comes after it


class Look(NamedTuple):
    """State of a run: new, running, incomplete, failed or done; and the error line of a failed one."""

    state: str
    error: str = ""


def look(run: Run, last: Mapping[str, Event] | None = None) -> Look:
    """How far a run is; a result that cannot be used, of another config, or of an earlier training is a failure.

    A run that was killed without a word leaves no error in its folder; then the last event of a sweep's journal says
    how it ended.
    """
    state = run_state(run.output_dir)
    if state == "done":
        err = damage(run) or other_config(run) or outdated(run)
        return Look("failed", err) if err else Look(state)
    if in_use(run.output_dir):
        return Look("running")
    event = (last or {}).get(run.key)
    if state == "failed":
        with contextlib.suppress(OSError):
            return Look(state, (run.output_dir / FAILED).read_text(encoding="utf-8").strip())
    if event is not None and event.kind == "failed":
        return Look("failed", event.error)
    return Look(state)


def in_use(directory: Path) -> bool:
    """Whether a process is at work in the folder of a run.

    Both locks are tried and let go at once, which makes a run that starts in this very moment think that the folder is
    in use; a sweep then tries it again.
    """
    return any(held(directory / name) for name in (LOCK, CLAIM))


def held(path: Path) -> bool:
    """Whether another process holds a lock file."""
    if not path.is_file():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:  # not ours to write: nothing can be said
        return False
    lock.release()
    return False


def damage(run: Run) -> str:
    """What is wrong with result.json of a finished run: an error that says what to do, or ""."""
    try:
        finished_result(run)
    except (OSError, ValueError) as err:
        return f'{error_line(err)}; delete the folder "{run.output_dir}" to do the run again'
    return ""


def other_config(run: Run) -> str:
    """What is wrong with the result of a finished run: the error if it was made with another config, else "".

    The configs are only built and compared if the command differs or a config file is younger than the result.
    """
    folder = run.output_dir
    files = [Path(item) for flag, item in zip(run.argv, run.argv[1:]) if flag.endswith("config-file")]
    try:
        command = read_json(folder / ENVIRONMENT).get("command")
        finished = (folder / DONE).stat().st_mtime
        if command == list(run.argv) and all(file.stat().st_mtime < finished for file in files):
            return ""
        stored = (folder / CONFIG).read_text(encoding="utf-8")
        for key in run.needs:  # the folder of all runs may have been moved
            path = json.dumps(str(_output(run) / key)).replace("\\", r"\\")
            stored = re.sub(rf"(?m)^(\s*\w+: ).*/{re.escape(key)}[\"']?$", rf"\g<1>{path}", stored)
        cfg = build_config(build_parser().parse_args(list(run.argv)))
        check_same_config(stored, cfg, str(folder))
    except (OSError, ValueError, KeyError) as err:
        return error_line(err)
    return ""


def outdated(run: Run) -> str:
    """What is wrong with a finished run that goes on from others: the error if one of these is gone or was trained
    again since, else ""."""
    for key in run.needs:
        folder = _output(run) / key
        trained, own = _start(folder, "train"), _start(run.output_dir)
        if run_state(folder) != "done" or (trained is not None and own is not None and own < trained):
            return f'the result is of an earlier run of {key}; delete the folder "{run.output_dir}" to do the run again'
    return ""


def _output(run: Run) -> Path:
    """The folder of all runs."""
    return run.output_dir.parents[run.key.count("/")]


def _start(folder: Path, mode: str = "") -> datetime | None:
    """When a run, or its part of this mode, last started; None if its files do not say."""
    try:
        environment = read_json(folder / ENVIRONMENT)
        starts = [environment, *environment.get("earlier_starts", ())]
        moments = [start["started"] for start in starts if mode in ("", start["mode"])]
        return max((datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S%z") for moment in moments), default=None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
