"""Figures of result.json beside accuracy: calibration, foreign images, base and new jointly, and gains by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.reports.run_results import RunResult

# Title: place in result.json.
FIGURES = {
    "ECE": ("ece",),
    "temperature": ("calibration", "temperature"),
    "ECE at it": ("calibration", "ece"),
    "AUROC (MCM)": ("ood", "average", "mcm", "auroc"),
    "FPR95 (MCM)": ("ood", "average", "mcm", "fpr95"),
    "AUROC (energy)": ("ood", "average", "energy", "auroc"),
    "FPR95 (energy)": ("ood", "average", "energy", "fpr95"),
    "base among all": ("joint", "base"),
    "new among all": ("joint", "new"),
    "H among all": ("joint", "h"),
}
PLACE = ["method", "part", "shots"]
EXTREMES = 3  # classes named at either end of the gains


class Reliability(NamedTuple):
    """Sums over the runs of a method, by bin of probability: predictions, right ones, and their probabilities."""

    count: np.ndarray  # type: ignore[assignment] # hides a method of tuples
    correct: np.ndarray
    probability: np.ndarray


def extra_figures(entries: Sequence[RunResult]) -> pd.DataFrame:
    """Mean over data sets of the means over seeds of FIGURES, by method, part and shots, without empty columns."""
    rows = [
        {**_place(r), "dataset": r.dataset, **{title: _value(r.result, keys) for title, keys in FIGURES.items()}}
        for r in entries
        if r.result is not None
    ]
    frame = pd.DataFrame(rows, columns=[*PLACE, "dataset", *FIGURES]).astype(dict.fromkeys(FIGURES, float))
    means = frame.groupby([*PLACE, "dataset"], sort=False).mean().groupby(PLACE, sort=False).mean()
    return means.dropna(axis=1, how="all").dropna(how="all").reset_index()


def reliability(entries: Sequence[RunResult]) -> dict[str, Reliability]:
    """Bins of every method at its largest number of shots, pooled over data sets, parts and seeds."""
    shots: dict[str, int] = {}
    for r in entries:
        shots[r.method] = max(r.shots, shots.get(r.method, 0))
    found: dict[str, Reliability] = {}
    for r in entries:
        bins = (r.result or {}).get("reliability")
        if bins and r.shots == shots[r.method]:
            own = Reliability(*(np.array(bins[name], float) for name in Reliability._fields))
            before = found.get(r.method, Reliability(*(np.zeros_like(side) for side in own)))
            found[r.method] = Reliability(*(one + more for one, more in zip(before, own)))
    return found


def class_gains(entries: Sequence[RunResult], baseline: str) -> pd.DataFrame:
    """Accuracy in percent of every class, mean over seeds, that of the baseline, and the difference in points.

    Args:
        baseline: a method whose runs count for every number of shots.
    """
    rows = [
        {**_place(r), "dataset": r.dataset, "class": name, "accuracy": entry["accuracy"]}
        for r in entries
        if r.result is not None
        for name, entry in (r.result.get("per_class") or {}).items()
    ]
    columns = ["method", "dataset", "part", "shots", "class"]
    frame = pd.DataFrame(rows, columns=[*columns, "accuracy"])
    means = frame.groupby(columns, sort=False).mean().reset_index()
    zero = means[means.method == baseline].drop(columns=["method", "shots"])
    others = means[means.method != baseline]
    found = others.merge(zero, on=["dataset", "part", "class"], suffixes=("", "_baseline"))
    return found.assign(gain=found.accuracy - found.accuracy_baseline)


def gain_rows(gains: pd.DataFrame) -> list[list[Any]]:
    """A row per method, data set, part and shots: mean gain, classes better, equal and worse, and the extremes."""
    rows = []
    for place, group in gains.groupby(["method", "dataset", "part", "shots"], sort=False):
        order = group.sort_values("gain", kind="stable")
        signs = [int((np.sign(group.gain.round(9)) == sign).sum()) for sign in (1, 0, -1)]
        rows.append([*place, group.gain.mean(), *signs, _named(order.iloc[::-1], 1), _named(order, -1)])
    return rows


def _named(order: pd.DataFrame, sign: int) -> list[tuple[str, float]]:
    """The first classes and their gains, of one sign."""
    pairs = zip(order["class"], order.gain)
    return [(name, gain) for name, gain in pairs if gain * sign > 0][:EXTREMES]


def _place(r: RunResult) -> dict[str, Any]:
    return {"method": r.method, "part": r.part, "shots": r.shots}


def _value(result: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = result
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
