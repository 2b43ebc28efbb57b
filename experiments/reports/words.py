"""The words and rows of a report, the same in every form."""

from __future__ import annotations

from experiments.reports.cells import H_MEAN, Block, Cell, title_of
from experiments.reports.compare import Comparison
from experiments.reports.document import Report
from experiments.reports.published import AVERAGE, PROVENANCES
from experiments.reports.stats import Paired

LEGEND = "Accuracies in percent: mean ± sample standard deviation over seeds."
LEGEND_PUBLISHED = (
    "Difference: ours minus published, in points. A published number without a word behind it was printed by its "
    "authors; "
    + "; ".join(f"({name}): {meaning}" for name, meaning in PROVENANCES.items() if name != "published")
    + "."
)
LEGEND_H = (
    "H is the harmonic mean of base and new accuracy. Of a data set it is that of the two means over seeds; "
    '"H of averages" is that of the two averages over data sets, as most papers print it; "Mean of H" is the mean of '
    "the values per data set."
)
LEGEND_STEPS = (
    "After each step: accuracy on the set just learned, on the old sets (their mean, each among its own classes) "
    "and on all classes so far. Forgetting, in points, is the mean over the old sets of the accuracy right after "
    "a set's own step minus the accuracy now: lower is better. Averages are over steps."
)
TEST_NAMES = {"wilcoxon": "Wilcoxon signed-rank test", "t": "paired t test"}


def summary(report: Report) -> str:
    """One sentence on where the numbers come from."""
    logs = len(report.readings) - report.asked
    text = f"Made from result.json of {report.done} of {report.asked} runs"
    text += f" and from log.txt of {logs} runs of other code." if logs else "."
    named = [" ".join(filter(None, (entry.paper, entry.table))) or entry.file for entry in report.recipe.published]
    return text + (f" Published numbers: {'; '.join(named)}." if named else "")


def has_published(report: Report) -> bool:
    """Whether a published number stands in some table."""
    return any(cell.published is not None for block in report.blocks for cell in block.cells.values())


def legend(report: Report) -> str:
    """How to read the tables."""
    parts = [LEGEND, LEGEND_PUBLISHED if has_published(report) else ""]
    parts.append({"base2new": LEGEND_H, "incremental": LEGEND_STEPS}.get(report.recipe.task, ""))
    return " ".join(filter(None, parts))


def ours(cell: Cell) -> str:
    """ "44.91 ± 1.20", with the number of seeds if some are missing; "-" if nothing was measured."""
    if cell.summary is None:
        return "-"
    text = f"{cell.summary.mean:.2f}"
    if cell.summary.std is not None:
        text += f" ± {cell.summary.std:.2f}"
    return text + (f" ({cell.summary.n} of {cell.seeds} seeds)" if cell.summary.n < cell.seeds else "")


def interval(cell: Cell) -> str:
    summary = cell.summary
    return "-" if summary is None or summary.low is None else f"{summary.low:.2f} to {summary.high:.2f}"


def published(cell: Cell) -> str:
    return "-" if cell.published is None else cell.published.text()


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign, a real minus; "-" for None."""
    if value is None:
        return "-"
    rounded = round(value, digits) + 0.0
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else '±'}{abs(rounded):.{digits}f}"


def metric_of(cell: Cell, block: Block) -> str:
    """The metric of a cell in words, with its step; both means of H have a name of their own."""
    if block.dataset:
        return f"{block.metric}, {cell.dataset}"
    if block.metric == "h" and cell.dataset in (AVERAGE, H_MEAN):
        return "H of averages" if cell.dataset == AVERAGE else "mean of H"
    return "H" if block.metric == "h" else block.metric


def dataset_of(cell: Cell, block: Block) -> str:
    return title_of(block.dataset or (AVERAGE if cell.dataset == H_MEAN else cell.dataset))


def p_value(test: Paired) -> str:
    if test.p is None:
        return "-"
    return f"{test.p:.2g}" if test.p >= 1e-4 else "< 0.0001"


CELL_HEADER = (
    *("method", "data set", "metric", "shots"),
    *("mean", "std", "95 % interval", "seeds", "published", "provenance", "difference"),
)


def cell_rows(report: Report) -> list[list[str]]:
    """Every cell with a value of ours or a published one, as text."""
    rows = []
    for block in report.blocks:
        for method in block.methods:
            for column in block.columns:
                cell = block.cells[method, column]
                if cell.summary is None and cell.published is None:
                    continue
                summary, number = cell.summary, cell.published
                rows.append(
                    [
                        method,
                        dataset_of(cell, block),
                        metric_of(cell, block),
                        str(cell.shots),
                        "-" if summary is None else f"{summary.mean:.2f}",
                        "-" if summary is None or summary.std is None else f"{summary.std:.2f}",
                        interval(cell),
                        f"{0 if summary is None else summary.n} of {cell.seeds}",
                        published(cell),
                        "-" if number is None else number.provenance,
                        signed(cell.delta),
                    ]
                )
    return rows


COMPARISON_HEADER = ("table", "pairs", "mean difference", "95 % interval", "higher / equal / lower", "p")


def comparison_pairs(report: Report) -> list[list[Comparison]]:
    """The comparisons of a report, those of the same two methods together."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in report.comparisons:
        pairs.setdefault((comparison.first, comparison.second), []).append(comparison)
    return list(pairs.values())


def comparison_title(comparison: Comparison) -> str:
    return f"{comparison.second} against {comparison.first}"


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Two rows: over data sets and seeds, and over data sets."""
    rows = []
    for what, test in (("data set and seed", comparison.runs), ("data set", comparison.datasets)):
        span = "-" if test.low is None else f"{signed(test.low)} to {signed(test.high)}"
        counts = f"{test.wins} / {test.ties} / {test.n - test.wins - test.ties}"
        rows.append([comparison.title, f"{test.n} x {what}", signed(test.mean), span, counts, p_value(test)])
    return rows


def comparison_note(comparison: Comparison) -> str:
    return (
        f"{comparison.second} minus {comparison.first}, {TEST_NAMES[comparison.runs.test]}, two-sided. Seeds of one "
        "data set share its test images: pairs of data set and seed are not independent and their p is too small; "
        "pairs of data sets are."
    )


COST_HEADER = ("method", "shots", "learned parameters", "seconds of training", "images/s in evaluation", "device")


def cost_rows(report: Report) -> list[list[str]]:
    return [
        [
            cost.method,
            str(cost.shots),
            f"{cost.parameters:,}",
            f"{cost.seconds:.1f}",
            "-" if cost.images_per_second is None else f"{cost.images_per_second:.0f}",
            ", ".join(cost.devices),
        ]
        for cost in report.costs
    ]
