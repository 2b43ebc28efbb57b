"""Outcome of tuning: a config for every method, and a report in which all methods stand side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from dassl.config.files import config_pairs
from experiments.recipe import Method, Tune, config_file, label
from experiments.reports.cells import shots_text
from experiments.reports.tables import escape_markdown, markdown_table
from experiments.sweeps.progress import time_text


class Outcome(NamedTuple):
    """All trials of a method as (number, accuracy in percent, values), the number of the best one, the keys of the
    runs of all, and their wall seconds."""

    method: Method
    trials: Sequence[tuple[int, float, Mapping[str, Any]]]
    best: int
    runs: Sequence[str]
    seconds: float

    @property
    def value(self) -> float:
        """Accuracy of the best trial, in percent."""
        return max(value for _, value, _ in self.trials)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """Values of the best trial."""
        return next(values for number, _, values in self.trials if number == self.best)


def config_text(outcome: Outcome, tune: Tune, marks: Mapping[str, Any], part: str) -> dict[str, str]:
    """The configs of a tuned method by the names of their files: its own, and that of a first stage if it has one.

    They are whole: with the values of the config that was tuned, and the recipe's options for this `part`.
    """
    method = outcome.method
    name = re.sub(r"[^A-Za-z0-9]+", "_", method.name).strip("_")
    configs = {name: method.config} | ({} if method.first is None else {f"{name}_first": method.first.config})
    head = (
        f"# {method.name}, tuned: best validation accuracy, {outcome.value:.2f} %, trials: {len(outcome.trials)}\n"
        f"# ({label(tune.dataset)}, {shots_text(tune.shots)}, seed {tune.seed}); no test image was read.\n"
        f"# Study: recipe {marks['recipe']}, data {marks['data']}, {_versions(marks)}\n"
    )
    options = method.options_for(tune.shots, tune.dataset, part)
    texts = {}
    for file, config in configs.items():
        pairs = {
            pair.key: pair.value for pair in config_pairs(config_file(f"configs/trainers/{method.trainer}", config))
        }
        pairs |= {key: yaml.safe_load(value) for key, value in zip(options[::2], options[1::2])}
        pairs |= outcome.chosen
        texts[file] = head + yaml.safe_dump(_nested(pairs), allow_unicode=True)
    return texts


def report_text(title: str, outcomes: Sequence[Outcome], tune: Tune, marks: Mapping[str, Any]) -> str:
    """The report, in Markdown."""
    keys = [dimension.key for dimension in tune.space]
    rows, chosen, every = [], [], []
    for outcome in outcomes:
        name, best = escape_markdown(outcome.method.name), outcome.chosen
        own = {key: value for key, value in best.items() if key not in keys}
        diverged = sum(value == 0 for _, value, _ in outcome.trials)
        budget = [str(len(outcome.trials)), str(diverged), time_text(outcome.seconds)]
        rows.append([name, *budget, str(len(own)), f"{outcome.value:.2f}"])
        chosen.append([name, *(_shown(best[key]) for key in keys), _listed(own)])
        lines = [[str(number), f"{value:.2f}", _listed(values)] for number, value, values in outcome.trials]
        lines = [
            [number, f"**{value}**" if int(number) == outcome.best else value, text] for number, value, text in lines
        ]
        every.append(f"### {name}\n\n{markdown_table(['trial', 'accuracy', 'values'], lines, left=3)}")
    header = ["method", "trials", "at 0 %", "time", "own options", "best, %"]
    return "\n".join(
        [
            f"# Tuning: {escape_markdown(title)}\n",
            f"Trials of every method: {tune.trials}, by the accuracy on validation images of {label(tune.dataset)} "
            f"({shots_text(tune.shots)}, seed {tune.seed}). Test images were not read. Optuna's TPE proposes the "
            "values, from a search space that all methods share and at most two options of a method's own; random "
            f"at the start, with the same shared values for every method: {random_trials(tune)}. A trial that "
            "diverged counts, with 0 %. No trial was pruned.\n",
            f"Study: recipe {marks['recipe']}, data {marks['data']}, {_versions(marks)}.\n",
            "## Budget and best value\n",
            markdown_table(header, rows),
            "## Chosen values\n",
            markdown_table(["method", *keys, "own"], chosen, left=len(keys) + 2),
            "## Every trial\n",
            *every,
        ]
    )


def random_trials(tune: Tune) -> int:
    """Trials at the start of a study that are drawn at random."""
    return max(1, tune.trials // 3)


def _versions(marks: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in marks["versions"].items())


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items()) or "-"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape_markdown(str(value))


def _nested(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """{"OPTIM.LR": 1} as {"OPTIM": {"LR": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in pairs.items():
        *nodes, leaf = key.split(".")
        place = tree
        for node in nodes:
            place = place.setdefault(node, {})
        place[leaf] = value
    return tree
