"""Numbers that papers print, with the source and reliability of each (see published/README.md)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.reports.stats import harmonic

FOLDER = Path(__file__).resolve().parent / "published"
COLUMNS = ("task", "backbone", "shots", "method", "dataset", "metric", "value", "provenance", "source")
# What a provenance means, from the surest to the least sure.
PROVENANCES = {
    "published": "printed by its authors",
    "measured": "measured by this project",
    "rerun": "run again by other authors",
    "digitised": "measured in a figure",
    "unverified": "recalled, read in no source, a hint and no target",
}
METRICS = ("accuracy", "base", "new", "h", "recall1")
AVERAGE = "average"
# Rounding moves H, and papers that print the mean over seeds or data sets of H, not H of the means: by up to this much.
H_TOLERANCE = 0.2


class PublishedValue(NamedTuple):
    """A published figure, in percent; the fields are those of the files."""

    task: str
    backbone: str
    shots: int
    method: str
    dataset: str
    metric: str
    value: float
    provenance: str
    source: str

    def text(self) -> str:
        """Two digits, and the provenance unless the number was printed by its authors."""
        return f"{self.value:.2f}" + ("" if self.provenance == "published" else f" ({self.provenance})")


class PublishedTable:
    """Published numbers of several tables; where two tables have the same cell, the first one counts."""

    def __init__(self, numbers: Iterable[PublishedValue]):
        self._found: dict[tuple[str, str, str, str, int], PublishedValue] = {}
        for number in numbers:
            key = (number.task, number.method, number.dataset, number.metric, number.shots)
            self._found.setdefault(key, number)

    def __len__(self) -> int:
        return len(self._found)

    def find(self, task: str, method: str, dataset: str, metric: str, shots: int) -> PublishedValue | None:
        """The figure of a cell; few-shot tables are looked up by shots, others are of one number of shots each."""
        if task == "few_shot":
            return self._found.get((task, method, dataset, metric, shots))
        hits = [n for (*key, _), n in self._found.items() if tuple(key) == (task, method, dataset, metric)]
        return hits[0] if hits else None


def tables(folder: Path = FOLDER) -> list[str]:
    """Names of the tables there are."""
    return sorted(path.stem for path in folder.glob("*.csv"))


def load(names: Sequence[str], folder: Path = FOLDER) -> PublishedTable:
    """The numbers of these tables.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a file has errors; all of them are listed.
    """
    return PublishedTable(number for name in names for number in read_table(name, folder))


def read_table(name: str, folder: Path = FOLDER) -> list[PublishedValue]:
    """The rows of one file, checked.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: wrong columns, or rows with a value out of range, an unknown provenance or metric, no source, a cell
            that stands twice, or an H that is not the harmonic mean of its base and new; all errors are listed.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(tables(folder))
        raise FileNotFoundError(f'there are no published numbers "{name}", choose from: {known}')
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {reader.fieldnames}")
        rows = list(reader)
    numbers, problems = [], []
    for line, row in enumerate(rows, 2):
        try:
            numbers.append(_number(row))
        except ValueError as err:
            problems.append(f"row {line}: {err}")
    problems += _cross_checks(numbers)
    if problems:
        raise ValueError(f"{path} has errors:\n  " + "\n  ".join(problems))
    return numbers


def _number(row: dict[str, str]) -> PublishedValue:
    empty = [name for name in COLUMNS if not (row[name] or "").strip()]
    if empty:
        raise ValueError(f"{', '.join(empty)} is empty")
    value = float(row["value"])
    if not 0 <= value <= 100:
        raise ValueError(f"value is {value}, expected a percentage")
    if not row["shots"].isdigit():
        raise ValueError(f"shots is {row['shots']!r}, expected a number")
    for name, allowed in (("provenance", PROVENANCES), ("metric", METRICS)):
        if row[name] not in allowed:
            raise ValueError(f"{name} is {row[name]!r}, expected one of {', '.join(allowed)}")
    texts = {name: row[name] for name in ("task", "backbone", "method", "dataset", "metric", "provenance", "source")}
    return PublishedValue(**texts, shots=int(row["shots"]), value=value)


def _cross_checks(numbers: Sequence[PublishedValue]) -> list[str]:
    problems, cells = [], {}
    for number in numbers:
        place = (number.task, number.backbone, number.shots, number.method, number.dataset)
        if (place, number.metric) in cells:
            problems.append(f"{number.method}, {number.dataset}, {number.metric} stands twice")
        cells[place, number.metric] = number.value
    for (place, metric), value in cells.items():
        base, new = cells.get((place, "base")), cells.get((place, "new"))
        if metric == "h" and base is not None and new is not None and abs(harmonic(base, new) - value) > H_TOLERANCE:
            problems.append(f"{place[3]}, {place[4]}: H is {value}, but base and new give {harmonic(base, new):.2f}")
    return problems
