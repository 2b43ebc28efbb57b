"""A report as Markdown, CSV, LaTeX and one HTML page; templates/ holds their layout and sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dassl.utils.spreadsheet import safe_cell
from experiments.reports.cells import Block, Cell, cell_frame, title_of
from experiments.reports.document import Report
from experiments.reports.open_world import class_gains, extra_figures, gain_rows
from experiments.reports.plots import Plot, marker_svg, panel_svg
from experiments.reports.published import PROVENANCES
from experiments.reports.run_results import RunResult
from experiments.reports.tables import code_markdown, escape_latex, escape_markdown, markdown_table, signed

TEST_NAMES = {"wilcoxon": "Wilcoxon signed-rank test", "t": "paired t test"}
FILES = (("config.yaml", "config"), ("log.txt", "log"), ("result.json", "result"))

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=lambda name: name == "report.html.jinja",
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(
    md=escape_markdown, code=code_markdown, tex=escape_latex, slug=lambda text: re.sub(r"[^A-Za-z0-9]+", "-", text)
)
_TEMPLATES.globals.update(provenances=PROVENANCES, test_names=TEST_NAMES)


class Table(NamedTuple):
    """A table of text; `text` are the columns that hold words, not numbers."""

    header: tuple[str, ...]
    rows: Sequence[Any]
    text: tuple[int, ...] = (0,)


def to_markdown(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The report as Markdown.

    Args:
        pictures: title and relative URL of figures.
    """

    def table(content: Table) -> str:
        rows = [[escape_markdown(cell) for cell in row] for row in content.rows]
        return markdown_table(content.header, rows, left=sum(i == column for i, column in enumerate(content.text)))

    def matrix(block: Block) -> str:
        def ours(cell: Cell, rank: int) -> str:
            return f"**{_ours(cell)}**" if rank == 1 else _ours(cell)

        rows = _matrix(block, escape_markdown, ours, _published, "*{}*")
        return markdown_table(["method", *map(escape_markdown, _titles(block))], rows)

    return _render("md", report, pictures=pictures, table=table, matrix=matrix)


def to_csv(report: Report) -> str:
    """Every cell, unrounded; `values` are seed:percent pairs. Cells without any number are there too, empty."""
    return cell_frame(report.recipe.task, report.blocks).map(safe_cell).to_csv(index=False, lineterminator="\n")


def to_latex(report: Report) -> str:
    """One table environment per table, best bold and second best underlined; needs the package booktabs."""

    def ours(cell: Cell, rank: int) -> str:
        if cell.summary is None:
            return "--"
        text = {1: "\\textbf{%.2f}", 2: "\\underline{%.2f}"}.get(rank, "%.2f") % cell.summary.mean
        text += "" if cell.summary.std is None else f"{{\\scriptsize$\\pm${cell.summary.std:.2f}}}"
        return text + (f"\\textsuperscript{{{cell.summary.n} of {cell.seeds}}}" if cell.summary.n < cell.seeds else "")

    def published(cell: Cell) -> str:
        if cell.published is None:
            return "--"
        word = cell.published.provenance
        return f"{cell.published.value:.2f}" + ("" if word == "published" else f"\\textsuperscript{{{word}}}")

    def matrix(block: Block) -> list[list[str]]:
        return _matrix(block, escape_latex, ours, published, r"\quad\textit{{{}}}")

    def notes(block: Block) -> list[str]:
        return sorted({cell.published.provenance for cell in block.cells.values() if cell.published} - {"published"})

    return _render("tex", report, matrix=matrix, notes=notes)


def to_html(report: Report, figures: Sequence[Plot], folder: Path, links: bool = True) -> str:
    """The report as one page.

    Args:
        figures: drawn into the page.
        folder: where the page will be written; links to the files of runs are relative to it.
        links: False leaves them out, for a page that is passed on without the runs.
    """
    drawn, number = [], 0
    for plot in figures:
        pictures = []
        for panel in plot.panels:
            label = escape(f"{plot.title}: {panel.title}" if panel.title else plot.title)
            pictures.append(panel_svg(panel, number).replace('role="img"', f'role="img" aria-label="{label}"', 1))
            number += 1
        drawn.append((plot, pictures))
    header = ("method", "data set", "part", "shots", "seed", "accuracy, %", "seconds", "protocol", "files")
    rows = [(_run_row(entry), _links(entry, folder) if links else []) for entry in report.entries]
    runs = Table(header, rows, (1, 2, 7))
    return _render("html", report, figures=drawn, runs=runs, marker_svg=marker_svg, signed=signed)


def _render(kind: str, report: Report, **more: Any) -> str:
    pairs: dict[tuple[str, str], list[Any]] = {}
    for comparison in report.comparisons:
        pairs.setdefault((comparison.first, comparison.second), []).append(comparison)
    text = _TEMPLATES.get_template(f"report.{kind}.jinja").render(
        report=report,
        has_published=any(cell.published for block in report.blocks for cell in block.cells.values()),
        comparisons=[
            {"title": f"{second} against {first}", "first": pair[0], "table": _comparison_table(pair)}
            for (first, second), pair in pairs.items()
        ],
        cells=_cell_table(report),
        costs=_cost_table(report),
        extras=_extra_table(report),
        gains=_gain_table(report),
        titles=_titles,
        **more,
    )
    return text if text.endswith("\n") else text + "\n"


def _titles(block: Block) -> list[str]:
    return [block.column_title(column) for column in block.columns]


def _matrix(
    block: Block,
    escape: Callable[[str], str],
    ours: Callable[[Cell, int], str],
    published: Callable[[Cell], str],
    label: str,
) -> list[list[str]]:
    """Rows of a table; below each method its published numbers and the differences, where there are any."""
    ranks = {column: block.ranks(column) for column in block.columns}
    rows = []
    for method in block.methods:
        cells = block.row(method)
        rows.append([escape(method), *(ours(cell, ranks[cell.dataset].get(method, 0)) for cell in cells)])
        if any(cell.published is not None for cell in cells):
            rows.append([label.format("published"), *map(published, cells)])
        if any(cell.delta is not None for cell in cells):
            rows.append([label.format("difference"), *(escape(signed(cell.delta)) for cell in cells)])
    return rows


def _ours(cell: Cell) -> str:
    """ "44.91 ± 1.20", with the number of seeds if some are missing; "-" if nothing was measured."""
    if cell.summary is None:
        return "-"
    text = _two(cell.summary.mean) + ("" if cell.summary.std is None else f" ± {cell.summary.std:.2f}")
    return text + (f" ({cell.summary.n} of {cell.seeds} seeds)" if cell.summary.n < cell.seeds else "")


def _published(cell: Cell) -> str:
    return "-" if cell.published is None else cell.published.text()


def _two(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"


def _cell_table(report: Report) -> Table:
    """Every cell with a measured or a published value."""
    header = (
        *("method", "data set", "metric", "shots", "mean", "std", "95 % interval", "seeds"),
        *("published", "provenance", "difference"),
    )
    cells = [cell for block in report.blocks for method in block.methods for cell in block.row(method)]
    rows = []
    for cell, row in zip(cells, cell_frame(report.recipe.task, report.blocks).itertuples()):
        if cell.summary is not None or cell.published is not None:
            place = [row.method, title_of(row.dataset), row.metric, str(row.shots)]
            interval = "-" if pd.isna(row.ci95_low) else f"{row.ci95_low:.2f} to {row.ci95_high:.2f}"
            ours = [_two(row.mean), _two(row.std), interval, f"{row.seeds} of {row.seeds_asked}"]
            provenance = cell.published.provenance if cell.published else "-"
            rows.append([*place, *ours, _published(cell), provenance, signed(cell.delta)])
    return Table(header, rows, (0, 1, 2))


def _comparison_table(comparisons: Sequence[Any]) -> Table:
    """Two rows each: over data sets and seeds, and over data sets."""
    header = ("table", "pairs", "mean difference", "95 % interval", "higher / equal / lower", "p")
    rows = []
    for comparison in comparisons:
        for what, test in (("data set and seed", comparison.runs), ("data set", comparison.datasets)):
            span = "-" if test.low is None else f"{signed(test.low)} to {signed(test.high)}"
            counts = f"{test.wins} / {test.ties} / {test.n - test.wins - test.ties}"
            p = "-" if test.p is None else f"{test.p:.2g}" if test.p >= 1e-4 else "< 0.0001"
            rows.append([comparison.title, f"{test.n} x {what}", signed(test.mean), span, counts, p])
    return Table(header, rows, (0, 1))


def _cost_table(report: Report) -> Table:
    header = ("method", "shots", "learned parameters", "seconds of training", "images/s in evaluation", "device")
    rows = []
    for cost in report.costs:
        speed = "-" if cost.images_per_second is None else f"{cost.images_per_second:.0f}"
        figures = [str(cost.shots), f"{cost.parameters:,}", f"{cost.seconds:.1f}", speed]
        rows.append([cost.method, *figures, ", ".join(cost.devices)])
    return Table(header, rows, (0, 5))


def _extra_table(report: Report) -> Table:
    frame = extra_figures(report.entries)
    rows = [[row[0], row[1], str(row[2]), *map(_two, row[3:])] for row in frame.itertuples(index=False)]
    return Table(tuple(frame.columns), rows, (0, 1))


def _gain_table(report: Report) -> Table:
    header = (
        *("method", "data set", "part", "shots", "mean gain", "better / equal / worse"),
        *("gain most", "lose most"),
    )
    rows = []
    if report.zero_shot is not None:
        for method, dataset, part, shots, mean, *signs, best, worst in gain_rows(
            class_gains(report.entries, report.zero_shot)
        ):
            named = [", ".join(f"{name} {signed(gain, 1)}" for name, gain in side) or "-" for side in (best, worst)]
            counts = " / ".join(map(str, signs))
            rows.append([method, title_of(dataset), part, str(shots), signed(mean), counts, *named])
    return Table(header, rows, (0, 1, 2, 6, 7))


def gains_csv(report: Report) -> str:
    """Accuracy of every class and its gain over the method without training; "" where there is none."""
    gains = None if report.zero_shot is None else class_gains(report.entries, report.zero_shot)
    if gains is None or gains.empty:
        return ""
    return gains.map(safe_cell).to_csv(index=False, lineterminator="\n")


def _run_row(entry: RunResult) -> list[str]:
    place = [entry.method, title_of(entry.dataset), entry.part, str(entry.shots), str(entry.seed)]
    if entry.result is None:
        return [*place, "-", "-", entry.err]
    seconds = entry.result.get("elapsed_seconds")
    shown = "-" if seconds is None else f"{seconds:.0f}"
    return [*place, f"{entry.value:.2f}", shown, str(entry.result.get("protocol_hash", "-"))]


def _links(entry: RunResult, folder: Path) -> list[tuple[str, str]]:
    """Title and URL of the files of a run that exist."""
    files = ((entry.folder / name, text) for name, text in FILES)
    return [(text, _url(path.resolve(), folder.resolve())) for path, text in files if path.is_file()]


def _url(target: Path, folder: Path) -> str:
    """URL relative to the folder of the report; absolute where there is no relative one."""
    try:
        return quote(Path(os.path.relpath(target, folder)).as_posix())
    except ValueError:  # another drive
        return target.as_uri()
