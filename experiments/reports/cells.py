"""Tables of a recipe: mean and spread of the runs of a cell, the published value, and the difference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments import Recipe, Run, step_part, step_parts
from experiments.reports.published import AVERAGE, PROVENANCES, PublishedTable, PublishedValue
from experiments.reports.run_results import RunResult
from experiments.reports.stats import Summary, harmonic, summarize
from experiments.reports.steps import STEP_METRICS, over_seeds, step_values

H_MEAN = "h_mean"
METRICS = {
    "accuracy": "accuracy",
    "base": "accuracy on base classes",
    "new": "accuracy on new classes",
    "h": "H",
    "all": "accuracy among base and new classes",
    **{metric: text for metric, (text, _) in STEP_METRICS.items()},
}
TITLES = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNet-Sketch",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    AVERAGE: "Average",
    H_MEAN: "Mean of H",
}


@dataclass(frozen=True)
class Cell:
    """One method on one data set, or its average over data sets."""

    method: str
    dataset: str
    metric: str
    shots: int
    summary: Summary | None
    """None: nothing was measured, or an average lacks data sets."""
    values: Mapping[int, float] = field(default_factory=dict)
    """Percent by seed; for an average, only seeds that every data set has."""
    seeds: int = 0
    """Number of seeds that the recipe asks for."""
    published: PublishedValue | None = None

    @property
    def delta(self) -> float | None:
        """Measured minus published, in points."""
        if self.summary is None or self.published is None:
            return None
        return self.summary.mean - self.published.value


Cells = dict[tuple[str, str], Cell]


@dataclass(frozen=True)
class Block:
    """One table: methods down, data sets across."""

    title: str
    metric: str
    shots: int
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    """Data sets, or steps; if there are several, then `average` and, in the table of H, `h_mean`."""
    cells: Mapping[tuple[str, str], Cell]
    sources: tuple[str, ...] = ()
    """Columns left out of comparisons: the training data of transfer, the earlier steps of incremental learning."""
    untrained: frozenset[str] = frozenset()
    """Methods without parameters and training images; their one run counts for every seed."""
    name: str = ""
    """Unique within a report; part of file names."""
    dataset: str = ""
    """Data set of a table whose columns are steps of incremental learning."""

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "forgetting"

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(column for column in self.columns if column not in (AVERAGE, H_MEAN))

    def column_title(self, column: str) -> str:
        return "H of averages" if (self.metric, column) == ("h", AVERAGE) else title_of(column)

    def row(self, method: str) -> list[Cell]:
        return [self.cells[method, column] for column in self.columns]

    def ranks(self, column: str, digits: int = 2) -> dict[str, int]:
        """Rank 1 (best) or 2 of the methods that lead a column, ties by the digits shown."""
        summaries = {method: self.cells[method, column].summary for method in self.methods}
        shown = {method: round(summary.mean, digits) for method, summary in summaries.items() if summary is not None}
        places = sorted(set(shown.values()), reverse=not self.lower_is_better)[:2]
        return {method: places.index(value) + 1 for method, value in shown.items() if value in places}


def title_of(dataset: str) -> str:
    """Display name of a data set."""
    return TITLES.get(dataset, dataset)


def shots_text(shots: int) -> str:
    return "1 shot" if shots == 1 else f"{shots} shots"


def blocks(recipe: Recipe, runs: Sequence[Run], entries: Sequence[RunResult], table: PublishedTable) -> list[Block]:
    """Tables of a recipe, by number of shots and metric.

    A method whose only number of shots is 0 (it needs no training image) appears in the tables of every number.
    """
    return _Builder(recipe, runs, entries, table).blocks()


class _Builder:
    def __init__(self, recipe: Recipe, runs: Sequence[Run], entries: Sequence[RunResult], table: PublishedTable):
        self.recipe, self.table = recipe, table
        self.values: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
        learning: dict[str, bool] = {}
        for r in entries:
            if r.result is not None:
                self.values[r.method, r.dataset, r.part, r.shots][r.seed] = r.value
                learns = r.result.get("trainable_parameters") != 0 or bool(r.result.get("epochs"))
                learning[r.method] = learning.get(r.method, False) or learns
        self.shots = {method.name: set(method.shots) for method in recipe.methods}
        self.seeds = {method.name: len(method.seeds) for method in recipe.methods}
        self.names = {method.name: method.published for method in recipe.methods}
        by_trainer = {method.trainer: method.published for method in reversed(recipe.methods)}
        for name in dict.fromkeys(r.method for r in entries if r.run is None):
            self.shots[name] = {r.shots for r in entries if r.method == name}
            self.seeds[name] = len({r.seed for r in entries if r.method == name})
            trainer = name.split(" ")[0]
            self.names[name] = by_trainer.get(trainer, trainer)
        self.columns: dict[str, list[str]] = {}
        for run in runs:
            columns = self.columns.setdefault(run.part, [])
            columns += [] if run.dataset in columns else [run.dataset]
        self.untrained = frozenset(
            name for name, shots in self.shots.items() if shots == {0} or not learning.get(name, True)
        )

    def blocks(self) -> list[Block]:
        numbers = sorted(set().union(*self.shots.values()))
        if len(numbers) > 1 and numbers[0] == 0:
            numbers = numbers[1:]
        makers = {"base2new": self.base2new, "few_shot": self.few_shot, "incremental": self.incremental}
        return [block for shots in numbers for block in makers.get(self.recipe.task, self.transfer)(shots)]

    def rows(self, shots: int) -> dict[str, int]:
        """Methods of a table with the number of shots of their runs, 0 for those that need no image."""
        return {name: 0 if own == {0} else shots for name, own in self.shots.items() if shots in own or own == {0}}

    def few_shot(self, shots: int) -> list[Block]:
        return [self.block(shots, "accuracy", self.columns["all"], self.measured("accuracy", "all", shots))]

    def transfer(self, shots: int) -> list[Block]:
        source = self.columns["source"]
        cells = self.measured("accuracy", "source", shots) | self.measured("accuracy", "target", shots)
        block = self.block(shots, "accuracy", self.columns["target"], cells)
        note = "; the average is of the targets" if AVERAGE in block.columns else ""
        return [
            replace(block, columns=(*source, *block.columns), sources=tuple(source), title=block.title + note),
        ]

    def incremental(self, shots: int) -> list[Block]:
        """Tables of each data set, one per metric: steps across, and their average."""
        found, sets = [], self.recipe.sets
        for dataset in self.columns[step_part(1)]:
            by_step = {
                name: step_values({p: self.values[name, dataset, p, own] for p in step_parts(sets)}, sets)
                for name, own in self.rows(shots).items()
            }
            for metric, (_, first) in STEP_METRICS.items():
                columns = [f"step {step}" for step in range(first, sets + 1)]
                cells = {
                    (name, column): self.cell(name, column, metric, own, by_step[name][metric, step])
                    for name, own in self.rows(shots).items()
                    for step, column in enumerate(columns, first)
                }
                block = self.block(shots, metric, columns, cells)
                title = f"{title_of(dataset)}: {block.title[0].lower()}{block.title[1:]}"
                name = f"{block.name}_{dataset}"
                found.append(replace(block, title=title, name=name, dataset=dataset, sources=tuple(columns[:-1])))
        return found

    def base2new(self, shots: int) -> list[Block]:
        columns = self.columns["base"]
        base, new = (self.averaged(self.measured(p, p, shots), p, columns, shots) for p in ("base", "new"))
        h = {}
        for key, cell in base.items():
            ours, other = cell.summary, new[key].summary
            mean = harmonic(ours.mean, other.mean) if ours is not None and other is not None else None
            values = over_seeds(lambda pair: harmonic(*pair), [cell.values, new[key].values])
            h[key] = self.cell(*key, "h", cell.shots, values, mean)
        for name, own in self.rows(shots).items():
            mean_of_h = self.average(h, name, H_MEAN, "h", columns, own)
            h[name, H_MEAN] = replace(mean_of_h, published=self.mean_of_published(name, columns, own))
        found = [
            self.block(shots, "base", columns, base),
            self.block(shots, "new", columns, new),
            self.block(shots, "h", columns, h, (AVERAGE, H_MEAN)),
        ]
        if "joint" in self.columns:
            found.append(self.block(shots, "all", columns, self.measured("all", "joint", shots)))
        return found

    def block(
        self, shots: int, metric: str, columns: Sequence[str], cells: Cells, averages: Sequence[str] = (AVERAGE,)
    ) -> Block:
        """A table with its average, which is not shown where it would repeat a single column."""
        title = METRICS[metric] + (f", {shots_text(shots)}" if shots else "")
        return Block(
            title=title[0].upper() + title[1:],
            metric=metric,
            shots=shots,
            methods=tuple(self.rows(shots)),
            columns=tuple(columns) if len(columns) == 1 else (*columns, *averages),
            cells=self.averaged(cells, metric, columns, shots) | cells,
            untrained=self.untrained,
            name=f"{metric}_{shots}",
        )

    def measured(self, metric: str, part: str, shots: int) -> Cells:
        return {
            (name, dataset): self.cell(name, dataset, metric, own, self.values[name, dataset, part, own])
            for name, own in self.rows(shots).items()
            for dataset in self.columns[part]
        }

    def cell(
        self, name: str, column: str, metric: str, shots: int, values: Mapping[int, float], mean: float | None = None
    ) -> Cell:
        """A cell; `mean`, if it was computed from other means, replaces the mean over seeds and keeps their spread."""
        summary = summarize(list(values.values())) if values else None
        if mean is not None:
            summary = summary.around(mean) if summary is not None else Summary(mean, None, None, None, 0)
        published = self.table.find(self.recipe.task, self.names[name], column, metric, shots)
        return Cell(name, column, metric, shots, summary, values, self.seeds[name], published)

    def averaged(self, cells: Cells, metric: str, columns: Sequence[str], shots: int) -> Cells:
        """`cells` with the average over `columns`."""
        rows = self.rows(shots).items()
        return cells | {(name, AVERAGE): self.average(cells, name, AVERAGE, metric, columns, own) for name, own in rows}

    def average(self, cells: Cells, name: str, column: str, metric: str, columns: Sequence[str], shots: int) -> Cell:
        """Mean over data sets of the means over seeds; empty if a data set has none."""
        parts = [cells[name, dataset] for dataset in columns]
        means = [part.summary.mean for part in parts if part.summary is not None]
        mean = float(np.mean(means)) if means and len(means) == len(parts) else None
        return self.cell(name, column, metric, shots, over_seeds(np.mean, [part.values for part in parts]), mean)

    def mean_of_published(self, name: str, columns: Sequence[str], shots: int) -> PublishedValue | None:
        """Mean of the published H of all data sets, with the least certain of their provenances."""
        found = [self.table.find(self.recipe.task, self.names[name], dataset, "h", shots) for dataset in columns]
        values = [value for value in found if value is not None]
        if not values or len(values) < len(found):
            return None
        worst = max(values, key=lambda value: list(PROVENANCES).index(value.provenance))
        source = f"mean of the {len(values)} values of H; {worst.source}"
        return worst._replace(dataset=H_MEAN, value=float(np.mean([v.value for v in values])), source=source)


def metric_of(cell: Cell, block: Block) -> str:
    """Metric of a cell in words, with its step; the two averages of H have different names."""
    if block.dataset:
        return f"{block.metric}, {cell.dataset}"
    names = {AVERAGE: "H of averages", H_MEAN: "mean of H"}
    return names.get(cell.dataset, "H") if block.metric == "h" else block.metric


def cell_frame(task: str, tables: Sequence[Block]) -> pd.DataFrame:
    """All cells, unrounded, one per row; `values` are seed:percent pairs. Cells without any number are empty."""
    rows = []
    for block in tables:
        for cell in (cell for method in block.methods for cell in block.row(method)):
            mean, std, low, high, n = cell.summary or (None, None, None, None, 0)
            published = cell.published
            rows.append(
                {
                    "task": task,
                    "table": block.title,
                    "metric": metric_of(cell, block),
                    "shots": cell.shots,
                    "method": cell.method,
                    "dataset": block.dataset or (AVERAGE if cell.dataset == H_MEAN else cell.dataset),
                    "mean": mean,
                    "std": std,
                    "ci95_low": low,
                    "ci95_high": high,
                    "seeds": n,
                    "seeds_asked": cell.seeds,
                    "values": " ".join(f"{seed}:{value!r}" for seed, value in sorted(cell.values.items())),
                    "published": published and published.value,
                    "provenance": published and published.provenance,
                    "source": published and published.source,
                    "difference": cell.delta,
                }
            )
    return pd.DataFrame(rows)
