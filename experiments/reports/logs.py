"""log.txt of a run, ours or of the original Dassl family (CoOp, CoCoOp, MaPLe and what grew out of them).

Such a log opens with the arguments of train.py and the whole config and ends with the figures of the last evaluation:
it says by itself what was run, and the layout of the folders does not matter.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dassl.utils.errors import error_line

END_SIGNALS = ("Finish training", "Finished training")
TEST_SIGNALS = ("=> result",)

# Options that are a place in a table; all others tell one variant of a method from another.
_PLACE = ("DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")


class LogRun(NamedTuple):
    """Run described by a log. Texts are "" and numbers None where it does not say."""

    folder: Path
    trainer: str
    config: str
    """Stem of the method's config file."""
    dataset: str
    """Stem of the data set's config file."""
    shots: int | None
    seed: int | None
    subsample: str
    """all, base or new."""
    evaluation: bool
    """An evaluation of a model that another run trained (--eval-only)."""
    transfer: bool
    """The evaluated model was trained on another data set: the path of the model does not name this one."""
    untrained: bool
    """An evaluation of no model of a run (--eval-only without --model-dir), as of zero-shot CLIP."""
    variant: str
    """Options of the command line that are not a place in a table, such as TRAINER.COOP.CSC=False."""
    figures: dict[str, float]
    """In percent: accuracy (from the counts if both are there, so with all digits), error, macro_f1."""


def last_figure(log: Path, keyword: str, signals: Sequence[str]) -> float:
    """The last "* <keyword>: <number>%" after the first line that is one of `signals`.

    Raises:
        ValueError: there is none.
    """
    found = _figures(_lines(log), signals).get(keyword)
    if found is None:
        raise ValueError(f'{log.name} has no "* {keyword}: ...%" after "{signals[0]}"')
    return found


def read_log(log: Path) -> LogRun:
    """Parse the run and its results.

    Raises:
        ValueError: it is not a log of this family, or has no result: the run did not end.
    """
    lines = _lines(log)
    arguments = _arguments(lines)
    if "trainer" not in arguments:
        raise ValueError('there are no arguments in it ("** Arguments **"), so it is not a log of a train.py')
    evaluation = arguments.get("eval_only") == "True"
    figures = _figures(lines, TEST_SIGNALS if evaluation else END_SIGNALS)
    total, correct = figures.pop("total", None), figures.pop("correct", None)
    if total and correct is not None:
        figures["accuracy"] = 100 * correct / total
    if "accuracy" not in figures:
        raise ValueError("it has no accuracy after the end of the run, which is running or was stopped")
    options = _options(arguments.get("opts", "[]"))
    shots = options.get("DATASET.NUM_SHOTS", "")
    seed = arguments.get("seed", "")
    dataset = Path(_text(arguments.get("dataset_config_file"))).stem
    model = _text(arguments.get("model_dir"))
    return LogRun(
        folder=log.parent,
        trainer=_text(arguments["trainer"]),
        config=Path(_text(arguments.get("config_file"))).stem,
        dataset=dataset,
        shots=int(shots) if shots.isdigit() else None,
        seed=int(seed) if seed.isdigit() else None,
        subsample=options.get("DATASET.SUBSAMPLE_CLASSES", "all"),
        evaluation=evaluation,
        transfer=evaluation and bool(model) and dataset not in Path(model).parts,
        untrained=evaluation and not model,
        variant=", ".join(f"{key}={value}" for key, value in sorted(options.items()) if key not in _PLACE),
        figures=figures,
    )


def find_logs(directory: Path) -> tuple[list[LogRun], list[tuple[Path, str]]]:
    """Every log.txt below a folder: those that can be read, and the others with the reason."""
    runs, problems = [], []
    for log in sorted(directory.rglob("log.txt")):
        try:
            runs.append(read_log(log))
        except (OSError, ValueError) as err:
            problems.append((log.parent, error_line(err)))
    return runs, problems


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def _figures(lines: Sequence[str], signals: Sequence[str]) -> dict[str, float]:
    """Percentages and counts printed after a signal; of several evaluations the last."""
    armed, found = False, {}
    for line in lines:
        armed = armed or line.strip() in signals
        match = re.search(r"\* ([\w -]+): (\d[\d.,]*(?:[eE][+-]?\d+)?)(%?)", line) if armed else None
        if match and (match[3] or match[1] in ("total", "correct")):
            found[match[1]] = float(match[2].replace(",", ""))
    return found


def _arguments(lines: Sequence[str]) -> dict[str, str]:
    """The "name: value" lines between "** Arguments **" and "** Config **"."""
    found: dict[str, str] = {}
    inside = False
    for line in lines:
        if line.strip() == "** Arguments **":
            inside = True
        elif line.strip() == "** Config **":
            break
        elif inside and ": " in line:
            name, _, value = line.partition(": ")
            found.setdefault(name.strip(), value.strip())
    return found


def _options(text: str) -> dict[str, str]:
    """KEY VALUE pairs of a printed list."""
    try:
        values = [str(value) for value in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError) as err:
        raise ValueError(f"its options cannot be read: {text}") from err
    return dict(zip(values[::2], values[1::2]))


def _text(value: str | None) -> str:
    return "" if value is None or value == "None" else value
