"""Results of the runs of a recipe, or why they are missing; checks that they may share a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import Recipe, Run
from experiments.recipe import label
from experiments.reports.logs import LogRun
from experiments.status import main_figure, result_or_reason

# Fields of a fingerprint in which runs of one cell differ by design: the seed, and the images it picks.
OF_THE_SEED = ("seed", "split")
# The field in which they may differ, with a mark: precision, torch and the like.
OF_THE_MACHINE = "machine"
# Fields that all methods of a table must share on one data set, whatever they learn.
OF_THE_DATA = ("test_split", "classnames", "backbone", "transforms.test")


class ProtocolMismatch(ValueError):
    """Results that were measured on different things would be averaged or compared."""


class RunResult(NamedTuple):
    """One run and what it measured."""

    method: str
    dataset: str
    part: str
    shots: int
    seed: int
    folder: Path
    result: dict[str, Any] | None
    """result.json, or of a log {"accuracy": percent, ...}; None if the run is missing."""
    err: str = ""
    """Reason why it is missing."""
    run: Run | None = None
    """None: read from a log."""

    @property
    def value(self) -> float:
        """Accuracy in percent of a run that is not missing; mean recall for retrieval, which has no accuracy."""
        if self.result is None:
            raise ValueError(f"{self.folder} has no result: {self.err}")
        return float(self.result[main_figure(self.result)])


def read_runs(runs: Sequence[Run]) -> list[RunResult]:
    """The result of each run; one that is not done, or whose result.json is damaged or of another run, is missing."""
    entries = []
    for run in runs:
        result, err = result_or_reason(run)
        entries.append(
            RunResult(run.method, run.dataset, run.part, run.shots, run.seed, run.output_dir, result, err, run)
        )
    return entries


def protocol(result: dict[str, Any]) -> dict[str, Any]:
    """Protocol that the runs of one cell must share, as flat names: the fingerprint without the entries that depend on
    the seed, the selection of the deployed weights, and the epochs."""
    marks = {key: value for key, value in result["fingerprint"].items() if key not in (*OF_THE_SEED, OF_THE_MACHINE)}
    flat: dict[str, Any] = {}
    for key, value in marks.items():
        flat.update(
            {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
        )
    return {**flat, "selection": result.get("selection"), "epochs": result.get("epochs")}


def check_protocols(entries: Sequence[RunResult]) -> None:
    """Check that only results of one protocol meet in a cell, and of the same data in a column.

    Raises:
        ProtocolMismatch: they do not; the message names the cells, the fields that differ and the runs.
    """
    cells, columns = defaultdict(list), defaultdict(list)
    for entry in entries:
        if entry.result is not None and "fingerprint" in entry.result:  # a log has none
            cells[entry.method, entry.dataset, entry.part, entry.shots].append(entry)
            columns[entry.dataset, entry.part].append(entry)
    problems = [
        f"{method}, {dataset}, {shots} shots, {part}: {difference}"
        for (method, dataset, part, shots), group in cells.items()
        for difference in _differences(group, None)
    ]
    if not problems:  # what differs within a cell differs within its column too
        problems = [
            f"{dataset}, {part}, all methods: {difference}"
            for (dataset, part), group in columns.items()
            for difference in _differences(group, OF_THE_DATA)
        ]
    if problems:
        raise ProtocolMismatch(
            "these results were not measured alike and cannot stand in one table; run the odd ones again, or remove "
            "their folders:\n  " + "\n  ".join(problems)
        )


def _differences(group: Sequence[RunResult], fields: Sequence[str] | None) -> list[str]:
    """One text per field with more than one value."""
    marks = [protocol(entry.result or {}) for entry in group]
    names = list(dict.fromkeys(name for mark in marks for name in mark)) if fields is None else fields
    found = []
    for name in names:
        folders = defaultdict(list)
        for entry, mark in zip(group, marks):
            folders[str(mark.get(name))].append(str(entry.folder))
        if len(folders) > 1:
            values = (f"{value!r} in {_some(places)}" for value, places in folders.items())
            found.append(f"{name} differs: " + "; ".join(values))
    return found


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def place_logs(recipe: Recipe, logs: Sequence[LogRun], runs: Sequence[Run]) -> tuple[list[RunResult], int]:
    """Logs as separate rows below those of a recipe.

    A log has no fingerprint, so it is never averaged with a run of this project: its method is called
    "<trainer> (log)", with config and options where the logs have several variants of one trainer. A log without
    training stands at 0 shots, and at seed 1 if it names none.

    Returns:
        the entries, and how many logs have no place in this table.

    Raises:
        ValueError: two logs claim the same cell and seed.
    """
    parts = {(run.dataset, run.part) for run in runs}
    shots = sorted({run.shots for run in runs})
    placed = []
    for log in logs:
        part = _part(recipe, log)
        known = log.shots if log.shots is not None else (shots[0] if len(shots) == 1 else None)
        seed = log.seed
        if log.untrained:
            known, seed = 0, 1 if seed is None else seed
        if not recipe.domain and (log.dataset, part) in parts and known is not None and seed is not None:
            placed.append((log, part, known, seed))
    variants = defaultdict(set)
    for log, *_ in placed:
        variants[log.trainer].add((log.config, log.variant))
    entries: dict[tuple[Any, ...], RunResult] = {}
    for log, part, known, seed in placed:
        method = f"{log.trainer} (log)"
        if len(variants[log.trainer]) > 1:
            method = f"{log.trainer} {' '.join(filter(None, (log.config, log.variant)))} (log)"
        key = (method, log.dataset, part, known, seed)
        if key in entries:
            raise ValueError(f"two logs claim {method}, {log.dataset}, {known} shots, {part}, seed {seed}: "
                             f"{entries[key].folder} and {log.folder}; remove one of them")  # fmt: skip
        entries[key] = RunResult(*key, log.folder, dict(log.figures))
    return list(entries.values()), len(logs) - len(placed)


def _part(recipe: Recipe, log: LogRun) -> str:
    """Part of a setting a log belongs to, "" for none."""
    if recipe.task == "base2new":
        known = log.untrained or (log.subsample, log.evaluation) in (("base", False), ("new", True))
        return log.subsample if known else ""
    if log.subsample != "all":
        return ""
    if recipe.task == "few_shot":
        return "" if log.transfer else "all"
    if log.untrained:
        return "source" if log.dataset == label(recipe.source) else "target"
    return "target" if log.transfer else "" if log.evaluation else "source"
