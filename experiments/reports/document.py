"""Contents of a report: tables, missing runs, cost and comparisons; forms.py and plots.py lay them out."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from dassl.engine.machine import machine_differences
from experiments import Recipe, Run
from experiments.reports.cells import Block, blocks, shots_text, title_of
from experiments.reports.compare import Comparison
from experiments.reports.published import PublishedTable
from experiments.reports.run_results import RunResult, check_protocols

NAMED = 4  # data sets or parts listed by name in a line about missing runs
# Parts that train; the others evaluate a model that such a part has trained.
TRAINED = re.compile(r"all|base|source|step\d+")


class Missing(NamedTuple):
    """Unfinished runs of one method, the same ones for every one of the data sets and numbers of shots."""

    method: str
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    what: tuple[str, ...]
    """Parts, seeds, and the reason."""
    command: str

    def text(self) -> str:
        """In words, without the command."""
        several = ", ".join(map(title_of, self.datasets))
        where = several if len(self.datasets) <= NAMED else f"{len(self.datasets)} data sets"
        *some, last = map(str, self.shots)
        shots = f"{', '.join(some)} and {last} shots" if some else shots_text(self.shots[0])
        return f"{self.method}, {where}, {shots} ({'; '.join(self.what)})"


class Cost(NamedTuple):
    """Cost of a method: means over its trained runs of one number of shots."""

    method: str
    shots: int
    parameters: int
    """Learned parameters; the largest of the runs, where the number of classes decides."""
    seconds: float
    """Training time per run, including the first stage."""
    images_per_second: float | None
    """In evaluation."""
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    recipe: Recipe
    path: str
    """The recipe as a command names it."""
    entries: tuple[RunResult, ...]
    blocks: tuple[Block, ...]
    missing: tuple[Missing, ...]
    costs: tuple[Cost, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def zero_shot(self) -> str | None:
        """The first method that has nothing to learn, which gains by class are measured from."""
        untrained = {name for block in self.blocks for name in block.untrained}
        return next((method.name for method in self.recipe.methods if method.name in untrained), None)

    @property
    def done(self) -> int:
        return sum(entry.run is not None and entry.result is not None for entry in self.entries)

    @property
    def machines(self) -> list[str]:
        """Methods whose averages are over runs of different machines, such as "CoOp: precision: amp in ...; ..."."""
        found = []
        for method in dict.fromkeys(entry.method for entry in self.entries):
            results = {str(r.folder): r.result for r in self.entries if r.method == method and r.result is not None}
            found += [f"{method}: {difference}" for difference in machine_differences(results)]
        return found

    @property
    def asked(self) -> int:
        return sum(entry.run is not None for entry in self.entries)


def build_report(
    recipe: Recipe,
    runs: Sequence[Run],
    entries: Sequence[RunResult],
    table: PublishedTable,
    path: str = "",
    sweep_flags: Sequence[str] = (),
) -> Report:
    """Put a report together.

    Args:
        runs: of the recipe.
        entries: of these runs, and of logs.
        path: of the recipe, for commands.
        sweep_flags: further arguments of sweep.py, such as another folder of runs.

    Raises:
        ProtocolMismatch: results of different protocols would meet in one cell or column.
    """
    check_protocols(entries)
    path = path or str(recipe.path)
    tables = tuple(blocks(recipe, runs, entries, table))
    return Report(recipe, path, tuple(entries), tables, _missing(entries, path, sweep_flags), _costs(entries))


def _missing(entries: Sequence[RunResult], path: str, flags: Sequence[str]) -> tuple[Missing, ...]:
    groups, parts = defaultdict(list), defaultdict(set)
    for entry in entries:
        place = (entry.method, entry.dataset, entry.shots)
        parts[place].add(entry.part)
        if entry.result is None:
            groups[place].append(entry)
    # Merge data sets that lack the same runs, then numbers of shots that lack them on the same data sets.
    by_dataset, by_shots = defaultdict(list), defaultdict(list)
    for (method, dataset, shots), group in groups.items():
        by_dataset[method, shots, _what(group, parts[method, dataset, shots])].append(dataset)
    for (method, shots, what), datasets in by_dataset.items():
        by_shots[method, tuple(datasets), what].append(shots)
    found = []
    for (method, names, what), numbers in by_shots.items():
        chosen = {"method": [method], "dataset": names, "shots": [*numbers]}
        choice = ",".join(f"{key}={','.join(map(_pattern, values))}" for key, values in chosen.items())
        command = shlex.join(["python", "sweep.py", path, *flags, "--only", choice])
        found.append(Missing(method, names, tuple(numbers), what, command))
    return tuple(found)


def _what(group: Sequence[RunResult], parts: set[str]) -> tuple[str, ...]:
    """Missing runs of one cell, by reason and seeds; `parts` are all parts of the cell."""
    seeds, alike = defaultdict(list), defaultdict(list)
    for entry in group:
        seeds[entry.part, entry.err].append(entry.seed)
    for (part, reason), several in seeds.items():
        alike[tuple(several), reason].append(part)
    what = []
    for (numbers, reason), missing in alike.items():
        named = ", ".join(missing if len(missing) <= NAMED else [*missing[:3], f"{len(missing) - 3} more parts"])
        if len(missing) == len(parts):
            named = "" if len(parts) == 1 else f"all {len(parts)} parts"
        listed = f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {reason}"
        what.append(f"{named}, {listed}" if named else listed)
    return tuple(what)


def _pattern(value: Any) -> str:
    """A value as a file name pattern of --only; a comma, which would end it, as any character."""
    return str(value).replace("[", "[[]").replace("*", "[*]").replace(",", "?")


def _costs(entries: Sequence[RunResult]) -> tuple[Cost, ...]:
    names = ("trainable_parameters", "train_seconds", "images_per_second", "device")
    frame = pd.DataFrame(
        [
            {"method": r.method, "shots": r.shots, "part": r.part, **{name: r.result.get(name) for name in names}}
            for r in entries
            if r.result is not None and (r.part == "first" or (r.run is not None and TRAINED.fullmatch(r.part)))
        ],
        columns=["method", "shots", "part", *names],
    ).astype(dict.fromkeys(names[:3], float))
    found = []
    for (method, shots), group in frame.groupby(["method", "shots"], sort=False):
        runs, first = group[group.part != "first"], group[group.part == "first"].train_seconds.fillna(0)
        mean = runs[[*names[:3]]].mean()
        if runs.trainable_parameters.notna().any() and runs.train_seconds.notna().any():
            seconds = mean.train_seconds + (first.mean() if len(first) else 0.0)
            speed = None if pd.isna(mean.images_per_second) else float(mean.images_per_second)
            devices = tuple(sorted({str(device or "") for device in runs.device}))
            found.append(Cost(method, shots, int(runs.trainable_parameters.max()), float(seconds), speed, devices))
    return tuple(found)
