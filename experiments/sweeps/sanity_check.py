"""Sanity check of a sweep: zero-shot CLIP is compared with its known figure before anything is trained on a data set.

Where images, class names, template, transform and weights are right, zero-shot CLIP reproduces the published accuracy
to a few tenths of a point. Where it does not, every other run on this data set with this backbone would be measured on
something else than what its table is compared with, so a sweep stops there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from dassl.config.files import config_pairs
from dassl.engine.command import build_config, build_parser
from dassl.engine.status import run_state
from dassl.utils.errors import error_line
from experiments import Run
from experiments.recipe import ROOT
from experiments.reports import published
from experiments.status import finished_result

TOLERANCE = 0.5  # points of accuracy
METHOD = "CLIP"
COUNTS = ("published", "measured")
"""Provenances of figures that are compared with; what was recalled or read off a curve is not."""


class Check(NamedTuple):
    """A zero-shot run that is done, beside the known figure; `err` says why other runs must not follow, or ""."""

    run: Run
    known: published.PublishedValue
    accuracy: float | None
    err: str = ""
    remark: str = ""

    def line(self) -> str:
        """Result in one line."""
        found = "no figure" if self.accuracy is None else f"{self.accuracy:.2f}"
        verdict = self.remark or ("OFF" if self.err else "right")
        return (
            f"sanity check: {self.run.dataset}, {self.known.backbone}: {found}, known {self.known.value:.2f}: {verdict}"
        )


class SanityCheck:
    """Comparison of zero-shot runs with known figures, and the runs that depend on it.

    Args:
        runs: all runs of the recipes; those of `ZeroshotCLIP` with the template of the data set, on all classes and the
            test images of a data set and backbone with a known figure (published/*zero_shot.csv) are compared.
    """

    def __init__(self, runs: Iterable[Run]):
        known = {(n.dataset, n.backbone): n for n in known_figures()}
        self.compared: dict[tuple[str, str], tuple[Run, published.PublishedValue]] = {}
        for run in runs:
            number = known.get((run.dataset, backbone(run))) if run.trainer == "ZeroshotCLIP" else None
            if number is not None and is_full_zero_shot(run):
                self.compared.setdefault((run.dataset, number.backbone), (run, number))
        self.keys = frozenset(run.key for run, _ in self.compared.values())
        self._checks: dict[str, Check] = {}

    def first(self, run: Run) -> Run | None:
        """The zero-shot run that must come before `run`, None if there is none or it is this very one."""
        if run.key in self.keys:
            return None
        pair = self.compared.get((run.dataset, backbone(run)))
        return None if pair is None else pair[0]

    def check(self, run: Run) -> Check | None:
        """Compare the zero-shot run of the data set and backbone of `run`, None as long as it is not done."""
        pair = self.compared.get((run.dataset, backbone(run)))
        if pair is None:
            return None
        zero_shot, number = pair
        if zero_shot.key not in self._checks:
            if run_state(zero_shot.output_dir) != "done":
                return None
            self._checks[zero_shot.key] = compare(zero_shot, number)
        return self._checks[zero_shot.key]

    def checks(self) -> list[Check]:
        """Everything that can be compared now."""
        found = (self.check(run) for run, _ in self.compared.values())
        return [check for check in found if check is not None]

    def summary(self, runs: Sequence[Run]) -> str:
        """Summary of the comparisons in one line, before a sweep begins."""
        pairs = dict.fromkeys((run.dataset, backbone(run)) for run in runs)
        open_pairs = [pair for pair in pairs if pair not in self.compared]
        if len(open_pairs) == len(pairs):
            return (
                "sanity check: nothing is compared with known figures, because there is no zero-shot run of a whole "
                "data set and backbone with one"
            )
        names = ", ".join(f"{dataset} ({name})" for dataset, name in pairs if (dataset, name) in self.compared)
        rest = f"; not compared: {', '.join(f'{dataset} ({name})' for dataset, name in open_pairs)}"
        return f"sanity check: zero-shot CLIP comes first on {names}{rest if open_pairs else ''}"


def known_figures(folder: Path = published.FOLDER) -> list[published.PublishedValue]:
    """Zero-shot accuracies of CLIP on whole data sets, of the files *zero_shot.csv."""
    names = [name for name in published.tables(folder) if name.endswith("zero_shot")]
    return [
        number
        for name in names
        for number in published.read_table(name, folder)
        if (number.method, number.metric, number.shots) == (METHOD, "accuracy", 0)
        and number.provenance in COUNTS
        and number.dataset != published.AVERAGE
    ]


def compare(run: Run, known: published.PublishedValue) -> Check:
    """A finished zero-shot run beside the known figure."""
    try:
        result = finished_result(run)
    except (OSError, ValueError) as err:
        return Check(run, known, None, remark=f"not compared: {error_line(err)}")
    accuracy, origin = result.get("accuracy"), result.get("fingerprint", {}).get("split_origin")
    if accuracy is None or result.get("split") != "test":
        return Check(run, known, None, remark="not compared: it has no accuracy on the test images")
    if origin == "self-made":
        return Check(run, known, accuracy, remark="not compared: the split was made on this machine")
    difference = accuracy - known.value
    if abs(difference) <= TOLERANCE + 1e-9:
        return Check(run, known, accuracy)
    text = (
        f"zero-shot CLIP has {accuracy:.2f} % on {run.dataset} with {known.backbone}, but {known.value:.2f} % is known "
        f"({known.source}): {difference:+.2f}, more than {TOLERANCE} points. {_causes(run, result, origin)} "
        f"--no-gate goes on nevertheless"
    )
    return Check(run, known, accuracy, text)


def _causes(run: Run, result: dict[str, Any], origin: str | None) -> str:
    """Likely causes, with the settings of this run."""
    marks, counts = result.get("fingerprint", {}), result.get("counts", {})
    causes = [
        f"images ({counts.get('test')} test images, split {origin or 'as published'}: python -m datasets.doctor)",
        f"class names ({counts.get('classes')}, hash {marks.get('classnames')})",
        f"template ({marks.get('templates')!r})",
        f"transform ({marks.get('transforms', {}).get('test')})",
        f"weights ({marks.get('backbone')})",
    ]
    return f"Likely causes: {'; '.join(causes)}; see {run.output_dir}."


def is_full_zero_shot(run: Run) -> bool:
    """True if a run of ZeroshotCLIP uses all classes, test images and the template of its data set."""
    try:
        cfg = build_config(build_parser().parse_args(list(run.argv)))
    except (OSError, ValueError, KeyError, ImportError):
        return False  # the run itself will say what is wrong
    plain = _values(str(ROOT / "configs" / "datasets" / f"{run.dataset}.yaml"))
    domains = all(
        list(cfg.DATASET[key]) == list(plain.get(f"DATASET.{key}", ())) for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS")
    )
    return (
        domains
        and plain.get("DATASET.NAME") == cfg.DATASET.NAME
        and cfg.DATASET.SUBSAMPLE_CLASSES == "all"
        and cfg.TEST.SPLIT == "test"
        and not cfg.INPUT.TEMPLATE
        and cfg.TRAINER.ZEROSHOT.TEMPLATES in ("", "dataset")
    )


def backbone(run: Run) -> str:
    """MODEL.BACKBONE.NAME of a run, from its command and config files."""
    argv = list(run.argv)
    if "MODEL.BACKBONE.NAME" in argv:
        return argv[len(argv) - argv[::-1].index("MODEL.BACKBONE.NAME")]
    name = ""
    for flag, value in pairwise(argv):
        if flag in ("--dataset-config-file", "--config-file"):
            name = _values(value).get("MODEL.BACKBONE.NAME", name)
    return name


@cache
def _values(path: str) -> dict[str, Any]:
    """Values of a config by dotted keys; nothing if it cannot be read."""
    try:
        return {pair.key: pair.value for pair in config_pairs(path)}
    except (OSError, ValueError):
        return {}
