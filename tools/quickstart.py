"""Summary of the quickstart: python -m tools.quickstart output/quickstart METHOD [METHOD ...]."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from align_prompt.prediction import Prediction
from align_prompt.sheet import contact_sheet
from dassl.evaluation.evaluator import PREDICTIONS
from dassl.utils.errors import error_line
from experiments import expand, load_recipe
from experiments.reports.effects import difference, effect
from experiments.reports.run_results import RunResult, check_protocols, read_runs
from experiments.reports.stats import summarize
from experiments.reports.tables import markdown_table

BASELINE = "ZeroshotCLIP"
PICTURES = 12


def gather(folder: Path, methods: Sequence[str]) -> dict[str, list[RunResult]]:
    """The finished runs of each method, seed by seed.

    Raises:
        ValueError: a run is not done, or the runs were not measured alike.
    """
    runs = expand(load_recipe("quickstart"), output=folder)
    entries = read_runs([run for run in runs if run.method in methods])
    missing = [f"{entry.folder}: {entry.err}" for entry in entries if entry.result is None]
    if missing:
        raise ValueError(f"runs are not done ({'; '.join(missing)}): run scripts/quickstart.sh again")
    check_protocols(entries)
    return {method: [entry for entry in entries if entry.method == method] for method in methods}


def table(found: dict[str, list[RunResult]]) -> str:
    """Markdown: accuracy, its difference to zero-shot CLIP with the 95 % interval, cost."""
    rows = []
    for method, entries in found.items():
        mean, std, *_ = summarize([entry.value for entry in entries])
        gain = "-"
        if method != BASELINE and BASELINE in found:
            files = [[entry.folder / PREDICTIONS for entry in found[name]] for name in (method, BASELINE)]
            points = effect([difference(*files)])
            gain = f"{points.mean:+.1f} ({points.low:+.1f} to {points.high:+.1f})"
        results = [entry.result or {} for entry in entries]
        seconds = statistics.fmean(result["elapsed_seconds"] for result in results)
        cells = (f"{results[0]['trainable_parameters']:,}", f"{seconds:.0f}")
        rows.append([method, f"{mean:.1f}" + (f" ± {std:.1f}" if std is not None else ""), gain, *cells])
    header = ["method", "accuracy", "against zero-shot (95 % interval)", "trainable parameters", "seconds"]
    return markdown_table(header, rows)


def sheet(folder: Path, found: dict[str, list[RunResult]]) -> None:
    """Test pictures of classes in equal distances, named by two methods with seed 1: pictures/ and pictures.png."""
    names = list(dict.fromkeys(name for name in (BASELINE, *found) if name in found))[:2]
    answers = {name: _answers(found[name][0].folder / PREDICTIONS) for name in names}
    by_class = defaultdict(list)
    for path, (label, *_) in sorted(next(iter(answers.values())).items()):
        by_class[label].append(path)
    classes = sorted(by_class)
    copies = folder / "pictures"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    rows = []
    for i, label in enumerate(classes[:: max(1, len(classes) // PICTURES)][:PICTURES]):
        path = by_class[label][i % len(by_class[label])]  # of another artist each time
        copy = copies / f"{label}{Path(path).suffix}"
        shutil.copyfile(path, copy)
        named = [
            (f"{'CLIP' if name == BASELINE else name}: {answer[path][1]}", answer[path][2])
            for name, answer in answers.items()
        ]
        rows.append(Prediction(str(copy), top=tuple(named)))
    contact_sheet(rows).save(folder / "pictures.png")


def _answers(path: Path) -> dict[str, tuple[str, str, float]]:
    """Label, prediction and its probability by picture."""
    with open(path, encoding="utf-8", newline="") as file:
        return {
            row["path"]: (row["label"], row["prediction"], float(row["probability"])) for row in csv.DictReader(file)
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.quickstart", description="Table and pictures of finished runs."
    )
    parser.add_argument("folder", type=Path, help="output folder of the runs of recipes/quickstart.yaml")
    parser.add_argument("methods", nargs="+", help="methods in the order of the table")
    args = parser.parse_args(argv)
    folder = args.folder
    try:
        found = gather(folder.absolute(), args.methods)
        text = table(found)
        (folder / "table.md").write_text(text, encoding="utf-8")
        sheet(folder, found)
        for method, entries in found.items():  # a short name for the run of the first seed
            link = folder / method
            link.unlink(missing_ok=True)
            os.symlink(entries[0].folder.relative_to(folder.absolute()), link)
    except (OSError, ValueError) as err:
        print(f"error: {error_line(err)}", file=sys.stderr)
        return 2
    counts = (found[args.methods[0]][0].result or {})["counts"]
    print(
        f"\n{counts['classes']} classes, {counts['test']} test images; mean ± standard deviation over seeds\n\n{text}"
    )
    print(f"written to {folder}: table.md, and pictures.png, test pictures with the names that the models give them")
    trained = next((method for method in args.methods if method != BASELINE), args.methods[0])
    print(f"next: .venv/bin/python -m align_prompt predict {folder}/{trained} {folder}/pictures --top 3")
    return 0


if __name__ == "__main__":
    sys.exit(main())
