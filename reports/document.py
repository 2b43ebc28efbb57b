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

import numpy as np

from tasks import Recipe, Run

from .cells import Block, blocks
from .compare import Comparison
from .published import Book
from .readings import Reading, check_protocols

# Parts that train; the others evaluate what such a part has trained.
TRAINED = re.compile(r"all|base|source|step\d+")


class Missing(NamedTuple):
    """Runs of one method, data set and number of shots that are not done."""

    method: str
    dataset: str
    shots: int
    what: tuple[str, ...]
    """Part, seeds, and why they are missing."""
    command: str


class Cost(NamedTuple):
    """What a method costs, as means over its trained runs of one number of shots."""

    method: str
    shots: int
    parameters: int
    """Learned parameters; the largest of the runs, where the number of classes decides."""
    seconds: float
    """Training, per run."""
    images_per_second: float | None
    """Evaluation."""
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All content; the forms below and reports/page.py only lay it out."""

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
    for reading in readings:
        if reading.result is None:
            groups[reading.method, reading.dataset, reading.shots].append(reading)
    found = []
    for (method, dataset, shots), group in groups.items():
        alone = {reading.part for reading in group} == {"all"}
        seeds = defaultdict(list)
        for reading in group:
            seeds[reading.part, reading.fault].append(reading.seed)
        what = tuple(
            ("" if alone else f"{part}, ") + f"seed{'s' * (len(several) > 1)} {', '.join(map(str, several))}: {fault}"
            for (part, fault), several in seeds.items()
        )
        choice = ",".join(f"{k}={_pattern(v)}" for k, v in (("method", method), ("dataset", dataset), ("shots", shots)))
        command = shlex.join(["python", "sweep.py", path, *flags, "--only", choice])
        found.append(Missing(method, dataset, shots, what, command))
    return found


def _pattern(value: object) -> str:
    """A value as a file name pattern of --only; a comma, which would end it, as any character."""
    text = str(value).replace("[", "[[]")
    return text.replace("*", "[*]").replace(",", "?")


def _costs(readings: Sequence[Reading]) -> list[Cost]:
    groups = defaultdict(list)
    for reading in readings:
        if reading.run is not None and reading.result is not None and TRAINED.fullmatch(reading.part):
            groups[reading.method, reading.shots].append(reading.result)
    found = []
    for (method, shots), results in groups.items():
        parameters = [r["trainable_parameters"] for r in results if r.get("trainable_parameters") is not None]
        seconds = [r["train_seconds"] for r in results if r.get("train_seconds") is not None]
        speeds = [r["images_per_second"] for r in results if r.get("images_per_second") is not None]
        if parameters and seconds:
            speed = float(np.mean(speeds)) if speeds else None
            devices = tuple(sorted({str(r.get("device", "")) for r in results}))
            found.append(Cost(method, shots, max(parameters), float(np.mean(seconds)), speed, devices))
    return found


def link(target: Path, folder: Path) -> str:
    """A path relative to the folder of the report, with "/"; absolute where there is no relative one."""
    try:
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return target.resolve().as_uri()
