"""A report as Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from experiments.reports.cells import H_MEAN, Block, Cell
from experiments.reports.document import Report
from experiments.reports.published import AVERAGE, PROVENANCES
from experiments.reports.tables import (
    code_markdown,
    csv_table,
    escape_latex,
    escape_markdown,
    latex_table,
    markdown_table,
)
from experiments.reports.words import (
    CELL_HEADER,
    COMPARISON_HEADER,
    COST_HEADER,
    cell_rows,
    comparison_note,
    comparison_pairs,
    comparison_rows,
    comparison_title,
    cost_rows,
    legend,
    metric_of,
    ours,
    published,
    signed,
    summary,
)


def to_markdown(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The report as Markdown.

    Args:
        pictures: title and relative URL of figures.
    """
    parts = [f"# {escape_markdown(report.recipe.title)}\n", f"{escape_markdown(summary(report))} {legend(report)}\n"]
    if report.missing:
        parts.append(f"**{report.asked - report.done} runs are missing**, see the end.\n")
    for block in report.blocks:
        parts.append(f"## {escape_markdown(block.title)}\n")
        header = ["method", *(escape_markdown(block.column_title(column)) for column in block.columns)]
        parts.append(markdown_table(header, _matrix(block)))
    for title, path in pictures:
        parts.append(f"![{escape_markdown(title)}]({path})\n")
    for pair in comparison_pairs(report):
        parts.append(f"## {escape_markdown(comparison_title(pair[0]))}\n")
        parts.append(escape_markdown(comparison_note(pair[0])) + "\n")
        rows = [row for comparison in pair for row in comparison_rows(comparison)]
        parts.append(markdown_table(COMPARISON_HEADER, [[escape_markdown(cell) for cell in row] for row in rows], 2))
    parts.append("## Every cell\n")
    rows = [[escape_markdown(cell) for cell in row] for row in cell_rows(report)]
    parts.append("<details><summary>mean, spread and published number</summary>\n")
    parts.append(markdown_table(CELL_HEADER, rows, 3))
    parts.append("</details>\n")
    if report.costs:
        parts.append("## Cost\n")
        rows = [[escape_markdown(cell) for cell in row] for row in cost_rows(report)]
        parts.append(markdown_table(COST_HEADER, rows))
    if report.missing:
        parts.append("## Missing\n")
        for entry in report.missing:
            parts.append(f"- {escape_markdown(entry.text())}: {code_markdown(entry.command)}")
        parts.append("")
    return "\n".join(parts)


def _matrix(block: Block) -> list[list[str]]:
    """Best value of a column bold; below each method its published numbers and the differences, where there are any."""
    ranks = {column: block.ranks(column) for column in block.columns}
    rows = []
    for method in block.methods:
        cells = [block.cells[method, column] for column in block.columns]
        shown = [
            f"**{ours(c)}**" if ranks[column].get(method) == 1 else ours(c) for column, c in zip(block.columns, cells)
        ]
        rows.append([escape_markdown(method), *shown])
        if any(cell.published is not None for cell in cells):
            rows.append(["*published*", *(published(cell) for cell in cells)])
            if any(cell.delta is not None for cell in cells):
                rows.append(["*difference*", *(signed(cell.delta) for cell in cells)])
    return rows


CSV_HEADER = (
    *("task", "table", "metric", "shots", "method", "dataset", "mean", "std", "ci95_low", "ci95_high", "seeds"),
    *("seeds_asked", "values", "published", "provenance", "source", "difference"),
)


def to_csv(report: Report) -> str:
    """Every cell, unrounded; `values` are seed:percent pairs. Cells without any number are there too, empty."""
    rows = []
    for block in report.blocks:
        for method in block.methods:
            for column in block.columns:
                cell = block.cells[method, column]
                number = cell.published
                place = [report.recipe.task, block.title, metric_of(cell, block), cell.shots, method]
                figures = [None, None, None, None, 0] if cell.summary is None else list(cell.summary)
                values = " ".join(f"{seed}:{value!r}" for seed, value in sorted(cell.values.items()))
                paper = [None, None, None] if number is None else [number.value, number.provenance, number.source]
                dataset = block.dataset or (AVERAGE if column == H_MEAN else column)
                rows.append([*place, dataset, *figures, cell.seeds, values, *paper, cell.delta])
    return csv_table(CSV_HEADER, rows)


def to_latex(report: Report) -> str:
    """One table environment per block, best bold and second best underlined; needs the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for block in report.blocks:
        ranks = {column: block.ranks(column) for column in block.columns}
        rows = []
        for method in block.methods:
            cells = [block.cells[method, column] for column in block.columns]
            shown = [_latex(cell, ranks[column].get(method)) for column, cell in zip(block.columns, cells)]
            rows.append([escape_latex(method), *shown])
            if any(cell.published is not None for cell in cells):
                rows.append([r"\quad\textit{published}", *(_latex_published(cell) for cell in cells)])
                if any(cell.delta is not None for cell in cells):
                    rows.append([r"\quad\textit{difference}", *(escape_latex(signed(c.delta)) for c in cells)])
        header = ["method", *(escape_latex(block.column_title(column)) for column in block.columns)]
        notes = sorted({c.published.provenance for c in block.cells.values() if c.published} - {"published"})
        marks = "".join(f" \\textsuperscript{{{note}}}: {PROVENANCES[note]}." for note in notes)
        caption = (
            f"{escape_latex(report.recipe.title)}. {escape_latex(block.title)}. Best bold, second underlined.{marks}"
        )
        label = "tab:" + ":".join(re.sub(r"[^A-Za-z0-9]+", "-", name) for name in (report.recipe.name, block.name))
        parts.append(latex_table(header, rows, caption, label))
    return "\n".join(parts)


def _latex(cell: Cell, rank: int | None) -> str:
    if cell.summary is None:
        return "--"
    mean = f"{cell.summary.mean:.2f}"
    mean = {1: f"\\textbf{{{mean}}}", 2: f"\\underline{{{mean}}}"}.get(rank or 0, mean)
    spread = "" if cell.summary.std is None else f"{{\\scriptsize$\\pm${cell.summary.std:.2f}}}"
    short = f"\\textsuperscript{{{cell.summary.n} of {cell.seeds}}}" if cell.summary.n < cell.seeds else ""
    return mean + spread + short


def _latex_published(cell: Cell) -> str:
    if cell.published is None:
        return "--"
    mark = "" if cell.published.provenance == "published" else f"\\textsuperscript{{{cell.published.provenance}}}"
    return f"{cell.published.value:.2f}{mark}"
