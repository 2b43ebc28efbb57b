"""From a recipe to its runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.recipe import WORK, Method, Recipe, RecipeError, config_file, label
from experiments.settings import SETTINGS, Places, Step


@dataclass(frozen=True)
class Run:
    """One run of train.py.

    `key` is unique and tells the folder: output_dir = folder of all runs / key. `dataset` is the column of a table: the
    data set, with its style where a style is the domain. `part` is all, base, new, source or target, or one of
    `step_parts`; or "first", the first stage of a method. `needs` are keys of runs that must be done before.
    """

    key: str
    task: str
    method: str
    trainer: str
    config: str
    dataset: str
    shots: int
    seed: int
    part: str
    argv: tuple[str, ...]
    output_dir: Path
    needs: tuple[str, ...] = ()


def expand(recipe: Recipe, root: str | Path | None = None, output: str | Path | None = None) -> list[Run]:
    """The runs of a recipe, seed by seed, so that a sweep that was stopped has whole rows; each after those it needs.

    Args:
        recipe: as of `load_recipe`.
        root: folder of the data sets; None: environment variable DATA, or data/ of the project.
        output: folder of all runs; None: environment variable OUTPUT, or output/ of the project.

    Raises:
        RecipeError: two methods would share a folder with different options.
    """
    root = Path(os.environ.get("DATA") or WORK / "data") if root is None else Path(root)
    output = Path(os.environ.get("OUTPUT") or WORK / "output") if output is None else Path(output)
    setting = SETTINGS[recipe.task]
    found: dict[str, Run] = {}
    for seed in _all(method.seeds for method in recipe.methods):
        for column in setting.columns(recipe):
            for shots in _all(method.shots for method in recipe.methods):
                for method in recipe.methods:
                    if seed not in method.seeds or shots not in method.shots:
                        continue
                    places = Places(shots, method.trainer, method.folder, seed)
                    for run in _runs(recipe, method, column, places, root, output):
                        earlier = found.setdefault(run.key, run)
                        if earlier.argv != run.argv or earlier.method != run.method:
                            raise RecipeError(
                                f'recipe "{recipe.path}": methods {earlier.method} and {run.method} would both use the '
                                f"folder {run.key}; give one of them a variant"
                            )
    return list(found.values())


def with_needs(chosen: Iterable[Run], runs: Sequence[Run]) -> list[Run]:
    """The runs of `chosen` and all that they need, in the order of `runs`."""
    by_key = {run.key: run for run in runs}
    keys: set[str] = set()
    waiting = [run.key for run in chosen]
    while waiting:
        key = waiting.pop()
        if key not in keys:
            keys.add(key)
            waiting += by_key[key].needs
    return [run for run in runs if run.key in keys]


def _all(lists: Iterable[Sequence[int]]) -> list[int]:
    return sorted({number for numbers in lists for number in numbers})


def _runs(recipe: Recipe, method: Method, column: str, places: Places, root: Path, output: Path) -> Iterator[Run]:
    """The runs of a method in one column; a first stage right before the training that goes on from it."""
    steps = SETTINGS[recipe.task].steps(recipe, column, places)
    if method.first is None:
        yield from (_run(recipe, method, step, places, root, output) for step in steps)
        return
    stage = places._replace(config=method.folder_of(method.first.config))
    for step, before in zip(steps, SETTINGS[recipe.task].steps(recipe, column, stage)):
        run = _run(recipe, method, step, places, root, output)
        if step.trained is None:
            first = _run(recipe, replace(method, config=method.first.config), before, stage, root, output)
            yield replace(first, part="first")
            argv = (*run.argv, method.first.option, str(first.output_dir))
            run = replace(run, argv=argv, needs=(*run.needs, first.key))
        yield run


def _run(recipe: Recipe, method: Method, step: Step, places: Places, root: Path, output: Path) -> Run:
    folder = output / step.key
    flags = [f"--import={name}" for name in recipe.imports]
    if step.trained is not None:
        flags += ["--eval-only", "--model-dir", str(output / step.trained)]
    start = () if step.start is None else ("TRAIN.INIT_FROM", str(output / step.start))
    argv = (
        *("--root", str(root), "--seed", str(places.seed), "--trainer", method.trainer),
        *("--dataset-config-file", str(config_file("configs/datasets", step.config))),
        *("--config-file", str(config_file(f"configs/trainers/{method.trainer}", method.config))),
        *("--output-dir", str(folder)),
        *flags,
        *method.options_for(places.shots, step.config, step.part),
        *step.options,
        *start,
    )
    return Run(
        key=step.key,
        task=recipe.task,
        method=method.name,
        trainer=method.trainer,
        config=label(method.config),
        dataset=step.dataset,
        shots=places.shots,
        seed=places.seed,
        part=step.part,
        argv=argv,
        output_dir=folder,
        needs=tuple(key for key in (step.trained, step.start) if key is not None),
    )
