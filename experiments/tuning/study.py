"""Trials of methods: Optuna proposes options, ordinary runs say what they are worth on validation images.

No trial is pruned: an early stop would give methods that converge late fewer epochs than others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from dassl.config.files import config_pairs
from dassl.data.datasets import build_dataset
from dassl.data.fingerprint import classnames_hash, split_hash
from dassl.engine.command import build_config, build_parser
from dassl.engine.result import short_hash
from dassl.engine.status import run_state
from dassl.utils import write_text
from experiments import Method, Recipe, Run, expand
from experiments.recipe import WORK, Dimension, When, config_file
from experiments.settings import SETTINGS
from experiments.status import finished_result, main_figure
from experiments.sweeps.event_log import EventLog
from experiments.sweeps.local import Summary
from experiments.tuning.outcome import Outcome, config_text, random_trials, report_text

JOURNAL = "optuna.log"
DIVERGED = "infinite or NaN"  # in the engine's messages about a loss, gradient or output
# A trial sees validation images alone.
_VALIDATION = {
    "TEST.SPLIT": "val",
    "TEST.NO_TEST": "False",
    "TEST.CALIBRATE": "False",
    "TEST.JOINT": "False",
    "TEST.OOD_DATASETS": "()",
}


class Trial(NamedTuple):
    """A trial that was asked for: its number in the study of its method, and its runs, the evaluated one last."""

    method: Method
    number: int
    runs: tuple[Run, ...]


class Tuning:
    """The study of a recipe's section `tune`, in the folder tune/RECIPE below that of all runs.

    Args:
        recipe: with a section `tune`.
        root: folder of the data sets, as of `expand`.
        output: folder of all runs.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: the recipe has no such section, or its data set has no validation images of its own.
    """

    def __init__(self, recipe: Recipe, root: Path | None, output: Path | None):
        if recipe.tune is None:
            raise ValueError(f'recipe "{recipe.path}" has no section tune, which says what to try: see docs/sweeps.md')
        self.optuna = _optuna()
        self.recipe, self.tune, self.root = recipe, recipe.tune, root
        self.folder = (WORK / "output" if output is None else output) / "tune" / recipe.name
        self.methods = [method for method in recipe.methods if method.name in recipe.tune.methods]
        self.fingerprint = {"recipe": self._recipe_hash(), "data": self._data_hash()}
        self.studies: dict[str, Any] = {}

    def run(self, do: Callable[[Sequence[Run]], Summary]) -> Summary:
        """Do all trials, `at_once` of every method at a time, then write configs/METHOD.yaml and report.md.

        Trials that were asked for and not finished come first. What is proposed depends on the values so far alone: not
        on the number of jobs, nor on stops in between.

        Args:
            do: does runs, such as `LocalSweep(runs, folder).run()`.

        Raises:
            ValueError: the folder holds the study of another recipe or of other data.
            OSError: another process is tuning in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.folder / ".lock").acquire(timeout=0):
                return self._run(do)
        except filelock.Timeout as err:
            raise OSError(f'"{self.folder}" is in use by another process that tunes; wait until it has ended') from err

    def _run(self, do: Callable[[Sequence[Run]], Summary]) -> Summary:
        self._open()
        while asked := [trial for method in self.methods for trial in self._ask(method)]:
            summary = do([run for trial in asked for run in trial.runs])
            errors = {}
            for trial in asked:
                errors.update(self._tell(trial, summary))
            if errors or summary.left:
                return summary._replace(errors=errors)
        outcomes = [self._outcome(method) for method in self.methods]
        marks = {**self.fingerprint, "versions": {name: metadata.version(name) for name in ("optuna", "torch")}}
        for outcome in outcomes:
            for name, text in config_text(outcome, self.tune, marks, SETTINGS[self.recipe.task].parts[0]).items():
                (self.folder / "configs").mkdir(exist_ok=True)
                write_text(text, self.folder / "configs" / f"{name}.yaml")
        write_text(report_text(self.recipe.title, outcomes, self.tune, marks), self.folder / "report.md")
        print(f"chosen values: {self.folder / 'configs'}; report: {self.folder / 'report.md'}")
        return Summary(tuple(key for outcome in outcomes for key in outcome.runs), {}, ())

    def _open(self) -> None:
        """Open the study of every method.

        Raises:
            ValueError: one has another fingerprint.
        """
        journal = self.optuna.storages.journal
        storage = self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(self.folder / JOURNAL)))
        for summary in self.optuna.get_all_study_summaries(storage):
            found = summary.user_attrs.get("fingerprint")
            if found not in (None, self.fingerprint):
                texts = [
                    ", ".join(f"{key} {value}" for key, value in marks.items()) for marks in (found, self.fingerprint)
                ]
                raise ValueError(
                    f'"{self.folder}" holds a study of another recipe or of other data ({texts[0]}; this one is '
                    f"{texts[1]}); use another --output, or delete the folder"
                )
        for method in self.methods:
            study = self.optuna.create_study(
                storage=storage, study_name=method.name, direction="maximize", load_if_exists=True
            )
            study.set_user_attr("fingerprint", self.fingerprint)
            self.studies[method.name] = study

    def _ask(self, method: Method) -> list[Trial]:
        """The next trials of a method, those first that were asked for before; empty when all are done."""
        study, states = self.studies[method.name], self.optuna.trial.TrialState
        space = {dimension.key: self._distribution(dimension) for dimension in self.tune.space_of(method.name)}
        trials = study.get_trials(deepcopy=False)
        waiting = [trial for trial in trials if trial.state == states.RUNNING]
        for trial in waiting:
            if set(trial.params) != set(space):  # the process ended while it was asked for
                study.tell(trial.number, state=states.FAIL)
        waiting = [trial for trial in waiting if set(trial.params) == set(space)]
        known = len(waiting) + sum(trial.state == states.COMPLETE for trial in trials)
        while len(waiting) < self.tune.at_once and known < self.tune.trials:
            # Seeds by number: a study that is continued goes on as if it had not been stopped, and the random trials of
            # the start have the same shared values for every method.
            study.sampler = self.optuna.samplers.TPESampler(
                n_startup_trials=random_trials(self.tune),
                seed=(1000 * self.tune.seed + known) % 2**32,
                constant_liar=True,
            )
            waiting.append(study.ask(space))
            known += 1
        return [Trial(method, trial.number, self._runs(method, trial.number, trial.params)) for trial in waiting]

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self.optuna.distributions
        if dimension.values:
            return kinds.CategoricalDistribution(dimension.values)
        whole = isinstance(dimension.low, int) and isinstance(dimension.high, int)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(dimension.low, dimension.high, log=dimension.log)

    def _runs(self, method: Method, number: int, params: dict[str, Any]) -> tuple[Run, ...]:
        """The runs of a trial: the trainings of the recipe's task, evaluated on validation images."""
        tune, chosen = self.tune, tuple((key, str(value)) for key, value in params.items())
        tried = replace(
            method,
            variant="_".join(filter(None, (method.variant, f"trial{number}"))),
            shots=(tune.shots,),
            seeds=(tune.seed,),
            when=(*method.when, When((*chosen, *_VALIDATION.items()))),
        )
        recipe = replace(self.recipe, methods=(tried,), datasets=(tune.dataset,), source=tune.dataset)
        runs = expand(recipe, self.root, self.folder)
        return tuple(run for run in runs if "--eval-only" not in run.argv)

    def _tell(self, trial: Trial, summary: Summary) -> dict[str, str]:
        """Note the value of a trial, 0 of one that diverged; returns the errors of one that failed otherwise."""
        errors = {run.key: summary.errors[run.key] for run in trial.runs if run.key in summary.errors}
        if any(DIVERGED in error for error in errors.values()):
            self.studies[trial.method.name].tell(trial.number, 0.0)
            return {}
        if not errors and run_state(trial.runs[-1].output_dir) == "done":
            result = finished_result(trial.runs[-1])
            if result.get("split") != "val":
                return {trial.runs[-1].key: f"it was evaluated on {result.get('split')!r} images, expected val"}
            self.studies[trial.method.name].tell(trial.number, result[main_figure(result)])
        return errors

    def _outcome(self, method: Method) -> Outcome:
        """Everything about the finished trials of a method; seconds are those of all attempts of their runs."""
        spent: dict[str, float] = {}
        for event in EventLog(self.folder).read():
            spent[event.key] = spent.get(event.key, 0.0) + (event.seconds or 0.0)
        study, complete = self.studies[method.name], self.optuna.trial.TrialState.COMPLETE
        trials = study.get_trials(deepcopy=False, states=(complete,))
        runs = [run.key for trial in trials for run in self._runs(method, trial.number, trial.params)]
        seconds = sum(spent.get(key, 0.0) for key in runs)
        best = max(trials, key=lambda trial: trial.value)  # the first of equal ones
        found = [(trial.number, trial.value, trial.params) for trial in trials]
        return Outcome(method, found, best.number, runs, seconds)

    def _recipe_hash(self) -> str:
        """Hash of what decides about the trials: section, task, methods and the content of their configs."""
        tuned = [
            {**asdict(method), "pairs": _pairs(f"configs/trainers/{method.trainer}", method.config)}
            for method in self.methods
        ]
        data = _pairs("configs/datasets", self.tune.dataset)
        return short_hash([self.recipe.task, self.recipe.domain, asdict(self.tune), tuned, data])

    def _data_hash(self) -> str:
        """Hash of the images to learn from and to choose by; test images have no part in it."""
        first = self.methods[0]
        lowest = {d.key: d.values[0] if d.values else d.low for d in self.tune.space_of(first.name)}
        run = self._runs(first, 0, lowest)[-1]
        dataset = build_dataset(build_config(build_parser().parse_args(list(run.argv))))
        test = {item.impath for item in dataset.test or ()}
        if not dataset.val or any(item.impath in test for item in dataset.val):
            raise ValueError(
                f"tuning needs validation images that are not its test images, which {self.tune.dataset} has not; "
                "choose another dataset in the section tune"
            )
        root = getattr(dataset, "items_root", "")
        hashes = [split_hash(items, root) for items in (dataset.train_x, dataset.val)]
        return short_hash([*hashes, classnames_hash(dataset.classnames)])


def _pairs(folder: str, config: str) -> list[tuple[str, Any]]:
    return [(pair.key, pair.value) for pair in config_pairs(config_file(folder, config))]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as err:
        raise ImportError("tuning needs the package optuna: pip install 'align-prompt[tune]', or 'optuna>=5'") from err
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
