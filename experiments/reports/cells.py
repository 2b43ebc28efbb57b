"""The cells of a recipe's tables: what our runs measured, what is published, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments import Recipe, Run, step_part, step_parts
from experiments.reports.published import AVERAGE, PROVENANCES, Book, Number
from experiments.reports.readings import Reading
from experiments.reports.stats import Summary, harmonic, summarize
from experiments.reports.steps import STEP_METRICS, step_values

H_MEAN = "h_mean"
METRICS = {
    "accuracy": "accuracy",
    "base": "accuracy on base classes",
    "new": "accuracy on new classes",
    "h": "H",
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
    """Percent by seed; of an average the seeds that all data sets have."""
    seeds: int = 0
    """How many seeds the recipe asks for."""
    published: Number | None = None

    @property
    def delta(self) -> float | None:
        """Ours minus published, in points."""
        if self.summary is None or self.published is None:
            return None
        return self.summary.mean - self.published.value


@dataclass(frozen=True)
class Block:
    """One table: methods down, data sets across."""

    title: str
    metric: str
    shots: int
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    """Data sets, or steps; if there are several, then `average` (in the block of H: of averages), then in the block of
    H the mean of H."""
    cells: Mapping[tuple[str, str], Cell]
    sources: tuple[str, ...] = ()
    """Columns that comparisons leave out: what a model was trained on, where the others are what it was carried to."""
    untrained: frozenset[str] = frozenset()
    """Methods that learn nothing, neither parameters nor from images: one run of them stands for every seed."""
    name: str = ""
    """Tells the blocks of a report apart in names of files."""
    dataset: str = ""
    """Of a table of one data set, whose columns are steps of incremental learning."""

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "forgetting"

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(column for column in self.columns if column not in (AVERAGE, H_MEAN))

    def column_title(self, column: str) -> str:
        if column == AVERAGE and self.metric == "h":
            return "H of averages"
        return title_of(column)

    def ranks(self, column: str, digits: int = 2) -> dict[str, int]:
        """1 for the best and 2 for the second best of a column, as far as the shown digits tell them apart."""
        shown = {}
        for method in self.methods:
            summary = self.cells[method, column].summary
            if summary is not None:
                shown[method] = round(summary.mean, digits)
        places = sorted(set(shown.values()), reverse=not self.lower_is_better)[:2]
        return {method: places.index(value) + 1 for method, value in shown.items() if value in places}


def title_of(dataset: str) -> str:
    """How a data set is called in tables."""
    return TITLES.get(dataset, dataset)


def shots_text(shots: int) -> str:
    return "1 shot" if shots == 1 else f"{shots} shots"


def blocks(recipe: Recipe, runs: Sequence[Run], readings: Sequence[Reading], book: Book) -> list[Block]:
    """The tables of a recipe, by number of shots and metric.

    A method whose only number of shots is 0 (it needs no training image) stands in the tables of all numbers of shots.
    """
    return _Builder(recipe, runs, readings, book).blocks()


class _Builder:
    def __init__(self, recipe: Recipe, runs: Sequence[Run], readings: Sequence[Reading], book: Book):
        self.recipe, self.book, self.readings = recipe, book, readings
        logs = list(dict.fromkeys(reading.method for reading in readings if reading.run is None))
        self.shots = {method.name: set(method.shots) for method in recipe.methods}
        self.shots.update({name: {r.shots for r in readings if r.method == name} for name in logs})
        self.seeds = {method.name: len(method.seeds) for method in recipe.methods}
        self.seeds.update({name: len({r.seed for r in readings if r.method == name}) for name in logs})
        self.names = {method.name: method.published for method in recipe.methods}
        by_trainer = {method.trainer: method.published for method in reversed(recipe.methods)}
        for name in logs:
            trainer = name.split(" ")[0]
            self.names[name] = by_trainer.get(trainer, trainer)
        parts = list(dict.fromkeys(run.part for run in runs))
        self.columns = {part: tuple(dict.fromkeys(run.dataset for run in runs if run.part == part)) for part in parts}
        learning: dict[str, bool] = {}
        for reading in readings:
            if reading.result is not None:
                learns = reading.result.get("trainable_parameters") != 0 or bool(reading.result.get("epochs"))
                learning[reading.method] = learning.get(reading.method, False) or learns
        self.untrained = frozenset(
            name for name, own in self.shots.items() if own == {0} or not learning.get(name, True)
        )

    def blocks(self) -> list[Block]:
        numbers = sorted({shots for several in self.shots.values() for shots in several})
        if len(numbers) > 1 and numbers[0] == 0:
            numbers = numbers[1:]
        makers = {"base2new": self.base2new, "few_shot": self.few_shot, "incremental": self.incremental}
        return [block for shots in numbers for block in makers.get(self.recipe.task, self.transfer)(shots)]

    def rows(self, shots: int) -> dict[str, int]:
        """Methods of a table with their own number of shots, which is 0 for those that need no image."""
        return {name: 0 if own == {0} else shots for name, own in self.shots.items() if shots in own or own == {0}}

    def few_shot(self, shots: int) -> list[Block]:
        columns = self.columns["all"]
        cells = self.measured("accuracy", "all", columns, shots)
        return [self.block(shots, "accuracy", columns, self.averaged(cells, "accuracy", columns, shots))]

    def transfer(self, shots: int) -> list[Block]:
        source, targets = self.columns["source"], self.columns["target"]
        cells = self.measured("accuracy", "source", source, shots)
        cells.update(self.measured("accuracy", "target", targets, shots))
        block = self.block(shots, "accuracy", source + targets, self.averaged(cells, "accuracy", targets, shots))
        note = "; the average is of the targets" if AVERAGE in block.columns else ""
        return [replace(block, sources=source, title=block.title + note)]

    def incremental(self, shots: int) -> list[Block]:
        """Tables of each data set, one per metric: steps across, and their average."""
        found, sets = [], self.recipe.sets
        for dataset in self.columns[step_part(1)]:
            measured = {part: self.measured("accuracy", part, (dataset,), shots) for part in step_parts(sets)}
            figures = {
                name: step_values({part: cells[name, dataset].values for part, cells in measured.items()}, sets)
                for name in self.rows(shots)
            }
            for metric, (_, first) in STEP_METRICS.items():
                columns = {f"step {step}": step for step in range(first, sets + 1)}
                cells = {}
                for name, own in self.rows(shots).items():
                    for column, step in columns.items():
                        values = figures[name][metric, step]
                        summary = summarize(list(values.values())) if values else None
                        cells[name, column] = self.cell(name, column, metric, own, values, summary)
                block = self.block(shots, metric, list(columns), self.averaged(cells, metric, list(columns), shots))
                title = f"{title_of(dataset)}: {block.title[0].lower()}{block.title[1:]}"
                name = f"{block.name}_{dataset}"
                found.append(replace(block, title=title, name=name, dataset=dataset, sources=tuple(columns)[:-1]))
        return found

    def base2new(self, shots: int) -> list[Block]:
        columns = self.columns["base"]
        base = self.averaged(self.measured("base", "base", columns, shots), "base", columns, shots)
        new = self.averaged(self.measured("new", "new", columns, shots), "new", columns, shots)
        h = {}
        for key, cell in base.items():
            shared = {s: harmonic(v, new[key].values[s]) for s, v in cell.values.items() if s in new[key].values}
            summary = None
            other = new[key].summary
            if cell.summary is not None and other is not None:
                summary = self.centred(harmonic(cell.summary.mean, other.mean), shared)
            h[key] = self.cell(*key, "h", cell.shots, shared, summary)
        for name, own in self.rows(shots).items():
            mean = self.average(h, name, H_MEAN, "h", columns, own)
            h[name, H_MEAN] = replace(mean, published=self.mean_of_published(name, columns, own))
        return [
            self.block(shots, "base", columns, base),
            self.block(shots, "new", columns, new),
            self.block(shots, "h", columns, h, (AVERAGE, H_MEAN)),
        ]

    def block(
        self,
        shots: int,
        metric: str,
        columns: Sequence[str],
        cells: dict[tuple[str, str], Cell],
        averages: Sequence[str] = (AVERAGE,),
    ) -> Block:
        """A table; an average over a single column, which would repeat it, is left out (`cells` has it all the same).

        Args:
            columns: those that are averaged last, as many as there are.
        """
        title = METRICS[metric] + (f", {shots_text(shots)}" if shots else "")
        alone = len(columns) - len(self.columns.get("source", ())) == 1
        columns = tuple(columns) if alone else (*columns, *averages)
        return Block(
            title=title[0].upper() + title[1:],
            metric=metric,
            shots=shots,
            methods=tuple(self.rows(shots)),
            columns=columns,
            cells=cells,
            untrained=self.untrained,
            name=f"{metric}_{shots}",
        )

    def measured(self, metric: str, part: str, columns: Sequence[str], shots: int) -> dict[tuple[str, str], Cell]:
        cells = {}
        for name, own in self.rows(shots).items():
            for dataset in columns:
                values = {
                    r.seed: r.value
                    for r in self.readings
                    if (r.method, r.dataset, r.part, r.shots) == (name, dataset, part, own) and r.result is not None
                }
                summary = summarize(list(values.values())) if values else None
                cells[name, dataset] = self.cell(name, dataset, metric, own, values, summary)
        return cells

    def cell(
        self, name: str, dataset: str, metric: str, shots: int, values: Mapping[int, float], summary: Summary | None
    ) -> Cell:
        number = self.book.find(self.recipe.task, self.names[name], dataset, metric, shots)
        return Cell(name, dataset, metric, shots, summary, values, self.seeds[name], number)

    def averaged(
        self, cells: dict[tuple[str, str], Cell], metric: str, columns: Sequence[str], shots: int
    ) -> dict[tuple[str, str], Cell]:
        """`cells` with the average over `columns`."""
        found = dict(cells)
        for name, own in self.rows(shots).items():
            found[name, AVERAGE] = self.average(cells, name, AVERAGE, metric, columns, own)
        return found

    def average(
        self,
        cells: Mapping[tuple[str, str], Cell],
        name: str,
        column: str,
        metric: str,
        columns: Sequence[str],
        shots: int,
    ) -> Cell:
        """Mean over data sets of the means over seeds; nothing if a data set has none."""
        parts = [cells[name, dataset] for dataset in columns]
        seeds = [seed for seed in parts[0].values if all(seed in part.values for part in parts)] if parts else []
        values = {seed: float(np.mean([part.values[seed] for part in parts])) for seed in seeds}
        summary = None
        means = [part.summary.mean for part in parts if part.summary is not None]
        if parts and len(means) == len(parts):
            summary = self.centred(float(np.mean(means)), values)
        return self.cell(name, column, metric, shots, values, summary)

    @staticmethod
    def centred(mean: float, values: Mapping[int, float]) -> Summary:
        """The spread of values over seeds, around a mean that was worked out from means."""
        if not values:
            return Summary(mean, None, None, None, 0)
        spread = summarize(list(values.values()))
        if spread.std is None or spread.high is None:
            return Summary(mean, None, None, None, spread.n)
        half = spread.high - spread.mean
        return Summary(mean, spread.std, mean - half, mean + half, spread.n)

    def mean_of_published(self, name: str, columns: Sequence[str], shots: int) -> Number | None:
        """Mean of the published H per data set, if all are published; it is as sure as the least sure of them."""
        numbers = [self.book.find(self.recipe.task, self.names[name], dataset, "h", shots) for dataset in columns]
        if not numbers or any(number is None for number in numbers):
            return None
        found = [number for number in numbers if number is not None]
        worst = max(found, key=lambda number: list(PROVENANCES).index(number.provenance))
        value = float(np.mean([number.value for number in found]))
        source = f"mean of the {len(found)} values of H; {worst.source}"
        return worst._replace(dataset=H_MEAN, value=value, source=source)
