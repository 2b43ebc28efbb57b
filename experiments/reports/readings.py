"""What the runs of a recipe left behind: figures, or why there are none; and whether they may stand in one table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from dassl.engine.run import FAILED, read_result, run_state
from experiments import Recipe, Run
from experiments.reports.logs import LogRun
from experiments.settings import label

# Fields of a fingerprint in which runs of one cell differ by design: the seed, and the images it picks.
OF_THE_SEED = ("seed", "split")
# Fields that all methods of a table must share on one data set, whatever they learn.
OF_THE_DATA = ("test_split", "classnames", "backbone", "transforms.test")
# Entries of result.json that are numbers, or null.
COSTS = ("trainable_parameters", "train_seconds", "eval_seconds", "elapsed_seconds", "images_per_second")


class ProtocolMismatch(ValueError):
    """Results that were measured on different things would be averaged or compared."""


class Reading(NamedTuple):
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
    """Why it is missing."""
    run: Run | None = None
    """None: read from a log."""

    @property
    def value(self) -> float:
        """Accuracy in percent of a run that is not missing; mean recall for retrieval, which has no accuracy."""
        if self.result is None:
            raise ValueError(f"{self.folder} has no result: {self.err}")
        return float(self.result[main_figure(self.result)])


def main_figure(result: Mapping[str, Any]) -> str:
    """What a run is compared by: accuracy, or mean_recall of a retrieval run."""
    return "mean_recall" if result.get("accuracy") is None and "mean_recall" in result else "accuracy"


def read_runs(runs: Sequence[Run]) -> list[Reading]:
    """The result of each run; one that is not done, or whose result.json is damaged or of another run, is missing."""
    readings = []
    for run in runs:
        result, err = _read(run)
        readings.append(
            Reading(run.method, run.dataset, run.part, run.shots, run.seed, run.output_dir, result, err, run)
        )
    return readings


def _read(run: Run) -> tuple[dict[str, Any] | None, str]:
    state = run_state(run.output_dir)
    if state == "failed":
        lines = (run.output_dir / FAILED).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return None, f"failed: {lines[0]}" if lines else "failed"
    if state != "done":
        return None, state
    try:
        return finished_result(run), ""
    except (OSError, ValueError) as error:
        return None, f"damaged: {error}"


def finished_result(run: Run) -> dict[str, Any]:
    """result.json of a run that is done.

    Raises:
        OSError: it is not there.
        ValueError: it is no JSON, lacks a figure, or is of another run.
    """
    result = read_result(run.output_dir)
    err = _fault(result, run)
    if err:
        raise ValueError(f"result.json {err}")
    return result


def _fault(result: Any, run: Run) -> str:
    """What is wrong with a result, "" if nothing."""
    if not isinstance(result, dict):
        return "is no object"
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
    for name in COSTS:
        if result.get(name) is not None and not _is_number(result[name]):
            return f"has {name} {result[name]!r}, expected a number"
    return ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def protocol(result: dict[str, Any]) -> dict[str, Any]:
    """What runs of one cell must share, as flat names: the fingerprint without what the seed decides, the choice of the
    deployed weights, and the epochs."""
    marks = {key: value for key, value in result["fingerprint"].items() if key not in OF_THE_SEED}
    flat: dict[str, Any] = {}
    for key, value in marks.items():
        flat.update(
            {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
        )
    return {**flat, "selection": result.get("selection"), "epochs": result.get("epochs")}


def check_protocols(readings: Sequence[Reading]) -> None:
    """Check that only results of one protocol meet in a cell, and of the same data in a column.

    Raises:
        ProtocolMismatch: they do not; the message names the cells, the fields that differ and the runs.
    """
    cells, columns = defaultdict(list), defaultdict(list)
    for reading in readings:
        if reading.result is not None and "fingerprint" in reading.result:  # a log has none
            cells[reading.method, reading.dataset, reading.part, reading.shots].append(reading)
            columns[reading.dataset, reading.part].append(reading)
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


def _differences(group: Sequence[Reading], fields: Sequence[str] | None) -> list[str]:
    """One text per field with more than one value."""
    marks = [protocol(reading.result or {}) for reading in group]
    names = list(dict.fromkeys(name for mark in marks for name in mark)) if fields is None else fields
    found = []
    for name in names:
        folders = defaultdict(list)
        for reading, mark in zip(group, marks):
            folders[str(mark.get(name))].append(str(reading.folder))
        if len(folders) > 1:
            values = (f"{value!r} in {_some(places)}" for value, places in folders.items())
            found.append(f"{name} differs: " + "; ".join(values))
    return found


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def place_logs(recipe: Recipe, logs: Sequence[LogRun], runs: Sequence[Run]) -> tuple[list[Reading], int]:
    """Logs as rows of their own below those of a recipe.

    A log has no fingerprint, so it is never averaged with a run of this project: its method is called
    "<trainer> (log)", with config and options where the logs have several variants of one trainer. A log without
    training stands at 0 shots, and at seed 1 if it names none.

    Returns:
        the readings, and how many logs have no place in this table.

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
    readings: dict[tuple[Any, ...], Reading] = {}
    for log, part, known, seed in placed:
        method = f"{log.trainer} (log)"
        if len(variants[log.trainer]) > 1:
            method = f"{log.trainer} {' '.join(filter(None, (log.config, log.variant)))} (log)"
        key = (method, log.dataset, part, known, seed)
        if key in readings:
            raise ValueError(f"two logs claim {method}, {log.dataset}, {known} shots, {part}, seed {seed}: "
                             f"{readings[key].folder} and {log.folder}; remove one of them")  # fmt: skip
        readings[key] = Reading(*key, log.folder, dict(log.figures))
    return list(readings.values()), len(logs) - len(placed)


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
