"""Progress of a sweep: the table of `sweep.py status`, durations and the time left."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from dassl.engine.records import read_metrics
from dassl.engine.status import CONFIG
from experiments import Run
from experiments.status import RunStatus, finished_result
from experiments.sweeps.event_log import Event

STATES = ("done", "running", "incomplete", "failed", "new")


class Durations:
    """Seconds a run takes, estimated from finished runs: the mean of the most similar ones there are."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | int, ...], list[float]] = defaultdict(list)

    def add(self, run: Run, seconds: float) -> None:
        for kind in _kinds(run):
            self._known[kind].append(seconds)

    def add_finished(self, runs: Iterable[Run], events: Iterable[Event]) -> None:
        """Learn from runs that are done: from the event log, or else from the run's result."""
        took = {event.key: event.seconds for event in events if event.kind == "done" and event.seconds}
        for run in runs:
            seconds = took.get(run.key)
            if seconds is None:
                with contextlib.suppress(OSError, ValueError):
                    result = finished_result(run)
                    seconds = result.get("elapsed_seconds") or result.get("eval_seconds")
            if seconds:
                self.add(run, seconds)

    def of(self, run: Run) -> float | None:
        """Estimate for a run, None as long as nothing is known."""
        return next((statistics.fmean(self._known[kind]) for kind in _kinds(run) if kind in self._known), None)

    def left(self, runs: Iterable[Run], jobs: int) -> float | None:
        """Seconds until all of `runs` are done, `jobs` at a time; None if that cannot be said."""
        estimates = [self.of(run) for run in runs]
        if None in estimates:
            return None
        seconds = [estimate for estimate in estimates if estimate is not None]
        return max(sum(seconds) / max(jobs, 1), max(seconds, default=0.0))


def _kinds(run: Run) -> tuple[tuple[str | int, ...], ...]:
    """From the most similar runs to all of them; a training and an evaluation are never alike."""
    trained = "evaluation" if run.needs else "training"
    return (
        (trained, run.trainer, run.config, run.dataset, run.shots),
        (trained, run.trainer, run.config, run.dataset),
        (trained, run.trainer, run.config),
        (trained, run.trainer),
        (trained,),
    )


def time_text(seconds: float | None) -> str:
    """A duration in words, as exact as is of use."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def status_table(runs: Sequence[Run], statuses: Mapping[str, RunStatus], durations: Durations) -> str:
    """The status table: a row per method, then what runs, what failed and why, and the time left."""
    states = {run.key: statuses[run.key].state for run in runs}
    width = max([len(run.method) for run in runs] + [len("method")])
    lines = ["  ".join([f"{'method':{width}}", *(f"{state:>10}" for state in STATES)])]
    methods = list(dict.fromkeys(run.method for run in runs))
    rows = [(name, [run for run in runs if run.method == name]) for name in methods] + [("all", list(runs))]
    for name, members in rows:
        counts = Counter(states[run.key] for run in members)
        lines.append("  ".join([f"{name:{width}}", *(f"{counts[state]:>10}" for state in STATES)]))
    running = [run for run in runs if states[run.key] == "running"]
    failed = [run for run in runs if states[run.key] == "failed"]
    if running:
        lines += ["", "running:", *(f"  {run.key}{_progress(run.output_dir)}" for run in running)]
    if failed:
        lines += ["", "failed:"]
        lines += [
            line for run in failed for line in (f"  {run.key}", f"    {statuses[run.key].error or 'unknown error'}")
        ]
        lost = {run.key for run in failed}
        blocked = [run for run in runs if states[run.key] != "done" and lost.intersection(run.needs)]
        lines += ["", "waiting for a failed run:", *(f"  {run.key}" for run in blocked)] if blocked else []
    left = [run for run in runs if states[run.key] != "done"]
    if left:
        jobs = max(len(running), 1)
        text = time_text(durations.left(left, jobs))
        lines += ["", f"{len(left)} of {len(runs)} runs are left; time left with {jobs} at a time: {text}"]
    else:
        lines += ["", f"all {len(runs)} runs are done"]
    return "\n".join(lines)


def _progress(folder: Path) -> str:
    """Progress of a running training, as far as its files say."""
    with contextlib.suppress(OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        epochs = [record["epoch"] for record in read_metrics(folder) if record.get("kind") == "epoch"]
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        if epochs:
            return f"  (epoch {epochs[-1]} of {config['OPTIM']['MAX_EPOCH']})"
    return ""
