"""A report: everything the tables, figures and pages of a recipe show, and its forms as text."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from experiments import Recipe, Run
from experiments.reports.cells import Block, blocks, shots_text, title_of
from experiments.reports.compare import Comparison
from experiments.reports.published import Book
from experiments.reports.readings import Reading, check_protocols

NAMED = 4  # data sets, or parts, that are named one by one in a line about missing runs

# Parts that train; the others evaluate what such a part has trained.
TRAINED = re.compile(r"all|base|source|step\d+")


class Missing(NamedTuple):
    """Runs of one method that are not done, the same ones for every one of the data sets and numbers of shots."""

    method: str
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    what: tuple[str, ...]
    """Parts, seeds, and why they are missing."""
    command: str

    def text(self) -> str:
        """In words, without the command."""
        several = ", ".join(map(title_of, self.datasets))
        where = several if len(self.datasets) <= NAMED else f"{len(self.datasets)} data sets"
        *some, last = map(str, self.shots)
        shots = f"{', '.join(some)} and {last} shots" if some else shots_text(self.shots[0])
        return f"{self.method}, {where}, {shots} ({'; '.join(self.what)})"


class Cost(NamedTuple):
    """What a method costs, as means over its trained runs of one number of shots."""

    method: str
    shots: int
    parameters: int
    """Learned parameters; the largest of the runs, where the number of classes decides."""
    seconds: float
    """Training, per run, with that of a first stage."""
    images_per_second: float | None
    """Evaluation."""
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All content; the forms below and experiments/reports/page.py only lay it out."""

    recipe: Recipe
    path: str
    """The recipe as a command names it."""
    readings: tuple[Reading, ...]
    blocks: tuple[Block, ...]
    missing: tuple[Missing, ...]
    costs: tuple[Cost, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def done(self) -> int:
        return sum(reading.run is not None and reading.result is not None for reading in self.readings)

    @property
    def asked(self) -> int:
        return sum(reading.run is not None for reading in self.readings)


def build_report(
    recipe: Recipe,
    runs: Sequence[Run],
    readings: Sequence[Reading],
    book: Book,
    path: str = "",
    sweep_flags: Sequence[str] = (),
) -> Report:
    """Put a report together.

    Args:
        runs: of the recipe.
        readings: of these runs, and of logs.
        book: published numbers.
        path: of the recipe, for commands.
        sweep_flags: what sweep.py must be told besides, such as another folder of runs.

    Raises:
        ProtocolMismatch: results that were not measured alike would meet in one cell or column.
    """
    check_protocols(readings)
    path = path or str(recipe.path)
    return Report(
        recipe,
        path,
        tuple(readings),
        tuple(blocks(recipe, runs, readings, book)),
        tuple(_missing(readings, path, sweep_flags)),
        tuple(_costs(readings)),
    )


def _missing(readings: Sequence[Reading], path: str, flags: Sequence[str]) -> list[Missing]:
    groups = defaultdict(list)
    parts = defaultdict(set)
    for reading in readings:
        place = (reading.method, reading.dataset, reading.shots)
        parts[place].add(reading.part)
        if reading.result is None:
            groups[place].append(reading)
    # First the data sets of which the same is missing, then the numbers of shots of which the same data sets are.
    by_dataset: dict[tuple[str, int, tuple[str, ...]], list[str]] = defaultdict(list)
    for (method, dataset, shots), group in groups.items():
        by_dataset[method, shots, _what(group, parts[method, dataset, shots])].append(dataset)
    by_shots: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for (method, shots, what), datasets in by_dataset.items():
        by_shots[method, tuple(datasets), what].append(shots)
    found = []
    for (method, names, what), numbers in by_shots.items():
        chosen = (("method", (method,)), ("dataset", names), ("shots", numbers))
        choice = ",".join(f"{key}={','.join(map(_pattern, values))}" for key, values in chosen)
        command = shlex.join(["python", "sweep.py", path, *flags, "--only", choice])
        found.append(Missing(method, names, tuple(numbers), what, command))
    return found


def _what(group: Sequence[Reading], parts: set[str]) -> tuple[str, ...]:
    """What is missing of one place in the tables, whose runs have these parts."""
    seeds = defaultdict(list)
    for reading in group:
        seeds[reading.part, reading.err].append(reading.seed)
    alike = defaultdict(list)
    for (part, err), several in seeds.items():
        alike[tuple(several), err].append(part)
    what = []
    for (several, err), missing in alike.items():
        named = ", ".join(missing if len(missing) <= NAMED else [*missing[:3], f"{len(missing) - 3} more parts"])
        if len(missing) == len(parts):
            named = "" if len(parts) == 1 else f"all {len(parts)} parts"
        what.append(
            f"{named}, " * bool(named) + f"seed{'s' * (len(several) > 1)} {', '.join(map(str, several))}: {err}"
        )
    return tuple(what)


def _pattern(value: object) -> str:
    """A value as a file name pattern of --only; a comma, which would end it, as any character."""
    text = str(value).replace("[", "[[]")
    return text.replace("*", "[*]").replace(",", "?")


def _costs(readings: Sequence[Reading]) -> list[Cost]:
    groups = defaultdict(list)
    first = defaultdict(list)
    for reading in readings:
        if reading.run is not None and reading.result is not None and TRAINED.fullmatch(reading.part):
            groups[reading.method, reading.shots].append(reading.result)
        elif reading.result is not None and reading.part == "first":
            first[reading.method, reading.shots].append(reading.result.get("train_seconds") or 0.0)
    found = []
    for (method, shots), results in groups.items():
        parameters = [r["trainable_parameters"] for r in results if r.get("trainable_parameters") is not None]
        seconds = [r["train_seconds"] for r in results if r.get("train_seconds") is not None]
        speeds = [r["images_per_second"] for r in results if r.get("images_per_second") is not None]
        if parameters and seconds:
            speed = float(np.mean(speeds)) if speeds else None
            devices = tuple(sorted({str(r.get("device", "")) for r in results}))
            before = float(np.mean(first[method, shots])) if first[method, shots] else 0.0
            found.append(Cost(method, shots, max(parameters), before + float(np.mean(seconds)), speed, devices))
    return found


def link(target: Path, folder: Path) -> str:
    """URL of a path, relative to the folder of the report; absolute where there is no relative one."""
    try:
        return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix())
    except ValueError:  # another drive
        return target.resolve().as_uri()
