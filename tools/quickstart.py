"""Table and chart of the quickstart: python -m tools.quickstart output/quickstart METHOD [METHOD ...]."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from dassl.engine.records import read_metrics
from experiments.reports.tables import comma_separated, load_results, markdown

BASELINE = "ZeroshotCLIP"
GREY = "#8a8f98"
COLORS = ("#2f6fb2", "#c2442d", "#3f9a5f", "#d9932f", "#7a56b5", "#c45a9b", "#36a2ab", "#8c6239", "#6b8e23", "#1f3a5f")


def draw(folder: Path, results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and macro-F1 of every method beside the training loss of those that train."""
    height = max(3.6, 1.2 + 0.6 * len(results))
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(10, height), width_ratios=(3, 2), layout="constrained")
    colors = itertools.cycle(COLORS)
    for row, result in enumerate(results):
        method = result["method"]
        color = GREY if method == BASELINE else next(colors)
        for offset, key, alpha in ((-0.2, "accuracy", 1.0), (0.2, "macro_f1", 0.45)):
            bars.barh(row + offset, result[key], height=0.36, color=color, alpha=alpha)
            bars.text(result[key] + 0.4, row + offset, f"{result[key]:.1f}", va="center", fontsize=9)
        if method == BASELINE:
            bars.axvline(result["accuracy"], color=color, linewidth=1, linestyle="--")
        records = [record for record in read_metrics(folder / method) if record["kind"] == "epoch"]
        if records:
            curves.plot([r["epoch"] for r in records], [r["loss"] for r in records], color=color, label=method)
    bars.set_yticks(range(len(results)), [result["method"] for result in results])
    bars.invert_yaxis()
    bars.set_xlim(0, max(result["accuracy"] for result in results) * 1.15)
    first = results[0]
    size = f"{first['counts']['classes']} classes, {first['shots']} shots, {first['counts']['test']:,} test images"
    bars.set_title(f"{first['dataset']}: {size}", fontsize=10)
    dashed = ", dashed line zero-shot accuracy" if BASELINE in [result["method"] for result in results] else ""
    bars.set_xlabel(f"percent; upper bar accuracy, lower bar macro-F1{dashed}")
    curves.set_title("training loss", fontsize=10)
    curves.set_xlabel("epoch")
    if curves.lines:
        curves.legend(frameon=False)
    for axes in (bars, curves):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.quickstart", description="Table and chart of finished runs.")
    parser.add_argument("folder", type=Path, help="holds one finished run per method, in a folder of the method's name")
    parser.add_argument("methods", nargs="+", help="methods in the order of the table")
    args = parser.parse_args(argv)
    try:
        results = load_results([args.folder / method for method in args.methods])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = markdown(results)
    (args.folder / "table.md").write_text(table, encoding="utf-8")
    (args.folder / "table.csv").write_text(comma_separated(results), encoding="utf-8")
    draw(args.folder, results, args.folder / "chart.png")
    print(f"\n{table}\nwritten to {args.folder}: table.md, table.csv, chart.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
