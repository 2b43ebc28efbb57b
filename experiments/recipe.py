"""Recipes: the methods, configs, data sets, shots and seeds of one table. Their files are read by recipe_file.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = __name__.startswith("align_prompt.")
WORK = Path.cwd() if INSTALLED else ROOT  # folder of data/ and output/
SEARCH = ROOT.parents[1] if INSTALLED else ROOT  # entry of sys.path that holds the code
RECIPES = ROOT / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists all its errors."""


@dataclass(frozen=True)
class When:
    """Options of a method for some shots, data sets or parts only; an empty tuple stands for all of them."""

    options: tuple[tuple[str, str], ...]
    shots: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class First:
    """A first stage: another training before every one of a method, with its own config; `option` is the key of
    the second stage that takes the folder of the first."""

    config: str
    option: str


@dataclass(frozen=True)
class Method:
    """One row of a table.

    `shots` and `seeds` replace those of the recipe. `variant` tells the folder of runs with `options` of their own from
    that of the plain config. `published` is the name of the method in the files of published numbers. `options` and
    `when` hold in both stages of a method with a `first`.
    """

    name: str
    trainer: str
    config: str
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    published: str
    variant: str = ""
    options: tuple[tuple[str, str], ...] = ()
    when: tuple[When, ...] = ()
    first: First | None = None

    @property
    def folder(self) -> str:
        """Name of the config and the variant in folders."""
        return self.folder_of(self.config)

    def folder_of(self, config: str) -> str:
        """As `folder`, of another config."""
        return label(config) + (f"_{self.variant}" if self.variant else "")

    def options_for(self, shots: int, dataset: str, part: str) -> tuple[str, ...]:
        """KEY VALUE pairs of one run; of a key that is there twice the later value wins."""
        pairs = dict(self.options)
        for case in self.when:
            chosen = ((case.shots, shots), (case.datasets, dataset), (case.parts, part))
            if all(not allowed or value in allowed for allowed, value in chosen):
                pairs.update(case.options)
        return tuple(item for pair in pairs.items() for item in pair)


@dataclass(frozen=True)
class Dimension:
    """Values that tuning may choose for one key: one of `values`, or, where there are none, a number from `low` to
    `high`, on a logarithmic scale if `log` (integers if both are)."""

    key: str
    values: tuple[str | int | float | bool, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False


@dataclass(frozen=True)
class Tune:
    """Search for the options of methods on validation images: the same trials, data and space for each.

    `own` holds further keys of some methods; `at_once` trials of a method are asked for together.
    """

    dataset: str
    shots: int
    seed: int
    trials: int
    at_once: int
    methods: tuple[str, ...]
    space: tuple[Dimension, ...]
    own: tuple[tuple[str, tuple[Dimension, ...]], ...] = ()

    def space_of(self, method: str) -> tuple[Dimension, ...]:
        """The space of a method: what all share first."""
        return (*self.space, *dict(self.own).get(method, ()))


@dataclass(frozen=True)
class Published:
    """Source of published numbers: a CSV file below experiments/reports/published, with its paper and table."""

    file: str
    paper: str = ""
    table: str = ""


@dataclass(frozen=True)
class Recipe:
    """The runs of one table, see `tasks.expand`."""

    name: str
    path: Path
    task: str
    title: str
    methods: tuple[Method, ...]
    datasets: tuple[str, ...] = ()
    source: str = ""
    targets: tuple[str, ...] = ()
    domain: str = ""
    sets: int = 0
    """Into how many sets incremental learning divides the classes."""
    joint: bool = False
    """Base-to-new also measures base and new classes together."""
    imports: tuple[str, ...] = ()
    untrusted: str = ""
    """Reason why modules to import were not, and what needs them was not checked; see dassl.config.imports.run_only."""
    published: tuple[Published, ...] = field(default=())
    tune: Tune | None = None


def config_file(folder: str, name: str) -> Path:
    """The file of a config: `name` without .yaml in `folder` of the project, or a path that ends in .yaml."""
    return Path(name).expanduser() if name.endswith(".yaml") else ROOT / folder / f"{name}.yaml"


def label(dataset: str) -> str:
    """Name of a data set in folders and tables: that of its config file."""
    return Path(dataset).stem if dataset.endswith(".yaml") else dataset
