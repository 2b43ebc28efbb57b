"""The task settings, each defined once: what is trained, what is evaluated, on which classes, and in which folder.

| setting | trained on | evaluated on |
|---------|------------|--------------|
| few_shot | K images of every class | all classes of the same data set |
| base2new | K images of every base class | the base classes ("base"), the others ("new"), all if asked ("joint") |
| cross_dataset | K images of every class of the source, or one style of it | the source, other data sets ("target") |
| domain_generalization | as cross_dataset | the source, its other domains ("target") |
| incremental | K images per class of set 1, then set 2, ... | its own set, each earlier one, all so far jointly |

Every step of incremental learning starts with what the step before has learned; its parts are those of `step_parts`.
The folders are those of scripts/*.sh, so that a run started by a script is a run of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from experiments.recipe import Recipe, label


class Places(NamedTuple):
    """Rest of a run's folder: folder = setting / data set / shots / rest."""

    shots: int
    trainer: str
    config: str  # name of the config, with the variant of the method if it has one
    seed: int

    def below(self, *folders: str) -> str:
        """The folder of a run, relative to the folder of all runs; unique, and so the key of the run."""
        return "/".join([*folders, f"shots_{self.shots}", self.trainer, self.config, f"seed{self.seed}"])


class Step(NamedTuple):
    """One run of a setting."""

    part: str  # all, base, new, source or target; of incremental learning see step_part
    dataset: str  # column of a table: the data set, with its style where a style is the domain
    config: str  # data set config: a file of configs/datasets without .yaml, or the path of a yaml file
    key: str  # folder, see Places.below
    options: tuple[str, ...]  # KEY VALUE pairs
    trained: str | None = None  # key of the run whose model is evaluated; None for a training
    start: str | None = None  # key of the run that a training starts from


Steps = tuple[Step, ...]


class Setting(NamedTuple):
    """A task setting."""

    title: str
    parts: tuple[str, ...]  # empty: they depend on the number of sets, see step_parts
    needs: tuple[str, ...]  # entries a recipe must have
    takes: tuple[str, ...]  # entries it may have
    columns: Callable[[Recipe], tuple[str, ...]]  # what is gone through: data sets, or the one source
    steps: Callable[[Recipe, str, Places], Steps]  # runs of one column, trained part first


def step_part(step: int, classes: int | str | None = None) -> str:
    """Part of incremental learning: the step's own set (None), an earlier set by its number, or "joint"."""
    return f"step{step}" + ("" if classes is None else f"_set{classes}" if isinstance(classes, int) else f"_{classes}")


def step_parts(sets: int) -> tuple[str, ...]:
    """All parts of incremental learning on this many sets, in the order of its runs.

    After the first step the joint classes are those of the first set, which needs no separate run.
    """
    parts = [step_part(1)]
    for step in range(2, sets + 1):
        parts += [step_part(step), *(step_part(step, earlier) for earlier in range(1, step)), step_part(step, "joint")]
    return tuple(parts)


def _shots(places: Places) -> tuple[str, ...]:
    return ("DATASET.NUM_SHOTS", str(places.shots))


def _classes(half: str) -> tuple[str, ...]:
    return ("DATASET.SUBSAMPLE_CLASSES", half)


def _domains(source: str, target: str) -> tuple[str, ...]:
    return ("DATASET.SOURCE_DOMAINS", f"['{source}']", "DATASET.TARGET_DOMAINS", f"['{target}']")


def _few_shot(recipe: Recipe, dataset: str, places: Places) -> Steps:
    name = label(dataset)
    return (Step("all", name, dataset, places.below("few_shot", name), _shots(places)),)


def _base2new(recipe: Recipe, dataset: str, places: Places) -> Steps:
    name = label(dataset)
    base = places.below("base2new/train_base", name)
    new = places.below("base2new/test_new", name)
    steps = (
        Step("base", name, dataset, base, _shots(places) + _classes("base")),
        Step("new", name, dataset, new, _shots(places) + _classes("new"), base),
    )
    if not recipe.joint:
        return steps
    joint = places.below("base2new/test_joint", name)
    return *steps, Step("joint", name, dataset, joint, (*_shots(places), *_classes("all"), "TEST.JOINT", "True"), base)


def _source(recipe: Recipe, source: str, places: Places) -> Step:
    domain = recipe.domain
    name = label(source) + (f"_{domain}" if domain else "")
    options = _domains(domain, domain) if domain else ()
    return Step("source", name, source, places.below("cross_dataset/train", name), options + _shots(places))


def _cross_dataset(recipe: Recipe, source: str, places: Places) -> Steps:
    trained = _source(recipe, source, places)
    keys = {target: places.below("cross_dataset/test", label(target)) for target in recipe.targets}
    return trained, *(Step("target", label(name), name, key, (), trained.key) for name, key in keys.items())


def _domain_generalization(recipe: Recipe, source: str, places: Places) -> Steps:
    trained, domain = _source(recipe, source, places), recipe.domain
    steps = [trained]
    for target in recipe.targets:
        name = f"{label(source)}_{target}" if domain else label(target)
        config = source if domain else target
        options = _domains(domain, target) + _shots(places) if domain else ()
        key = places.below("domain_generalization", name)
        steps.append(Step("target", name, config, key, options, trained.key))
    return tuple(steps)


def _incremental(recipe: Recipe, dataset: str, places: Places) -> Steps:
    name, sets = label(dataset), recipe.sets
    trained = [places.below("incremental/train", name, f"set_{step}_of_{sets}") for step in range(1, sets + 1)]
    steps = []
    for step, key in enumerate(trained, 1):
        before = trained[step - 2] if step > 1 else None
        own = _shots(places) + _classes(f"{step}/{sets}")
        steps.append(Step(step_part(step), name, dataset, key, own, start=before))
        if before is None:
            continue
        others: dict[int | str, str] = {earlier: f"{earlier}/{sets}" for earlier in range(1, step)}
        others["joint"] = f"1-{step}/{sets}"
        for classes, chosen in others.items():
            folder = f"set_{classes}" if isinstance(classes, int) else classes
            place = places.below("incremental/test", name, f"step_{step}_of_{sets}", folder)
            options = _shots(places) + _classes(chosen)
            steps.append(Step(step_part(step, classes), name, dataset, place, options, key))
    return tuple(steps)


def _datasets(recipe: Recipe) -> tuple[str, ...]:
    return recipe.datasets


def _sources(recipe: Recipe) -> tuple[str, ...]:
    return (recipe.source,)


SETTINGS = {
    "few_shot": Setting("few-shot classification", ("all",), ("datasets",), (), _datasets, _few_shot),
    "base2new": Setting("base-to-new generalisation", ("base", "new"), ("datasets",), ("joint",), _datasets, _base2new),
    "cross_dataset": Setting(
        "cross-dataset transfer", ("source", "target"), ("source", "targets"), ("domain",), _sources, _cross_dataset
    ),
    "domain_generalization": Setting(
        "domain generalisation",
        ("source", "target"),
        ("source", "targets"),
        ("domain",),
        _sources,
        _domain_generalization,
    ),
    "incremental": Setting("incremental learning", (), ("datasets", "sets"), (), _datasets, _incremental),
}
