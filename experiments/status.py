"""State of the runs of recipes, read from their folders: how far each is, and if its result is whole and its own.

The one place for sweeps and reports; what a folder alone says, without its run, is in dassl/engine/status.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import filelock

from dassl.config.files import config_files
from dassl.config.imports import UntrustedCode
from dassl.engine.command import build_config, build_parser
from dassl.engine.status import CONFIG, DONE, ENVIRONMENT, FAILED, LOCK, check_same_config, read_result, run_state
from dassl.utils import read_json
from dassl.utils.errors import error_line
from experiments.runs import Run

# Entries of result.json that are numbers, or null.
_COSTS = ("trainable_parameters", "train_seconds", "eval_seconds", "elapsed_seconds", "images_per_second")
CLAIM = ".claim"  # held by the sweep that does a run; the engine's own lock comes after it


class RunStatus(NamedTuple):
    """State of a run: new, running, incomplete, failed or done; and the error line of a failed one."""

    state: str
    error: str = ""


class LastEvent(Protocol):
    """Of a run in the event log of a sweep: its kind and its error line."""

    @property
    def kind(self) -> str: ...
    @property
    def error(self) -> str: ...


def run_status(run: Run, last: Mapping[str, LastEvent] | None = None) -> RunStatus:
    """Status of a run; a result that cannot be used, of another config, or of an earlier training is a failure.

    For a killed run without FAILED, use the last event in sweep.jsonl.
    """
    state = run_state(run.output_dir)
    if state == "done":
        err = damage(run) or other_config(run) or outdated(run)
        return RunStatus("failed", err) if err else RunStatus(state)
    if in_use(run.output_dir):
        return RunStatus("running")
    event = (last or {}).get(run.key)
    if state == "failed":
        with contextlib.suppress(OSError):
            return RunStatus(state, (run.output_dir / FAILED).read_text(encoding="utf-8").strip())
    if event is not None and event.kind == "failed":
        return RunStatus("failed", event.error)
    return RunStatus(state)


def in_use(directory: Path) -> bool:
    """True if a process is working in the folder of a run.

    Both locks are tried and let go at once, which makes a run that starts in this very moment think that the folder is
    in use; a sweep then tries it again.
    """
    return any(held(directory / name) for name in (LOCK, CLAIM))


def held(path: Path) -> bool:
    """True if another process holds a lock file."""
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
    """Problem of result.json of a finished run: an error that says what to do, or ""."""
    try:
        finished_result(run)
    except (OSError, ValueError) as err:
        return f'{error_line(err)}; delete the folder "{run.output_dir}" to do the run again'
    return ""


def other_config(run: Run) -> str:
    """Error if the result of a finished run was made with another config, else "".

    The configs are only built and compared if the command differs or a config file is younger than the result.
    """
    folder = run.output_dir
    configs = [item for flag, item in zip(run.argv, run.argv[1:]) if flag.endswith("config-file")]
    try:
        files = set().union(*map(config_files, configs))
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
    except UntrustedCode:
        return ""  # the config cannot be built without the code that is not to run
    except (OSError, ValueError, KeyError) as err:
        return error_line(err)
    return ""


def outdated(run: Run) -> str:
    """Error if a run that a finished run started from is gone or was trained again since, else ""."""
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
    """Time at which a run, or its part of this mode, last started; None if its files do not say."""
    try:
        environment = read_json(folder / ENVIRONMENT)
        starts = [environment, *environment.get("earlier_starts", ())]
        moments = [start["started"] for start in starts if mode in ("", start["mode"])]
        return max((datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S%z") for moment in moments), default=None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def main_figure(result: Mapping[str, Any]) -> str:
    """Main metric of a result: accuracy; else mean_recall of retrieval, miou of segmentation or box_ap of detection."""
    names = ("accuracy", "mean_recall", "miou", "box_ap")
    return next((name for name in names if result.get(name) is not None), "accuracy")


def result_or_reason(run: Run) -> tuple[dict[str, Any] | None, str]:
    """The result of a run, or None and the reason why there is none."""
    state = run_state(run.output_dir)
    if state == "failed":
        lines = (run.output_dir / FAILED).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return None, f"failed: {lines[0]}" if lines else "failed"
    if state != "done":
        return None, state
    try:
        return finished_result(run), ""
    except (OSError, ValueError) as err:
        return None, f"damaged: {err}"


def finished_result(run: Run) -> dict[str, Any]:
    """result.json of a run that is done.

    Raises:
        OSError: it is not there.
        ValueError: it is not JSON, lacks a figure, or is of another run.
    """
    result = read_result(run.output_dir)
    err = _error_of(result, run)
    if err:
        raise ValueError(f"result.json {err}")
    return result


def _error_of(result: Any, run: Run) -> str:
    """Problem of a result, "" if there is none."""
    if not isinstance(result, dict):
        return "is not an object"
    name = main_figure(result)
    figure = result.get(name)
    if not _is_number(figure):
        return f"has no {name} (it says {figure!r})"
    if not 0 <= figure <= 100:
        return f"has {name} {figure}, expected a percentage"
    if not isinstance(result.get("fingerprint"), dict):
        return "has no fingerprint"
    expected = {"method": run.trainer, "seed": run.seed}
    if run.part != "target":  # another data set may have no number of shots
        expected["shots"] = run.shots
    for name, value in expected.items():
        if result.get(name) != value:
            return f"is of another run: {name} is {result.get(name)!r}, expected {value!r}"
    for name, kind in (("machine", dict), ("earlier_machines", list)):
        if not isinstance(result.get(name, kind()), kind):
            return f"has {name} {result[name]!r:.50}"
    for name in _COSTS:
        if result.get(name) is not None and not _is_number(result[name]):
            return f"has {name} {result[name]!r}, expected a number"
    return ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
