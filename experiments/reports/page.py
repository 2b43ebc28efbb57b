"""A report as one HTML file that needs nothing else: it opens from a disk, is light or dark as the reader's system is,
fits on a phone, and its tables sort by a click on a column."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments.reports.cells import Cell, title_of
from experiments.reports.document import Report, link
from experiments.reports.plots import Plot, marker_svg, panel_svg
from experiments.reports.readings import Reading
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
    has_published,
    legend,
    ours,
    signed,
    summary,
)

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #23272e; --soft: #626a75; --rule: #d9dde3; --tint: #f3f5f8;
  --accent: #9c3a1e; --best: #e5efe7; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e3e6ea; --soft: #9aa3af; --rule: #343a43;
  --tint: #1c2026; --accent: #f0a184; --best: #1f3327; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p, .note { max-width: 62rem; margin: .4rem 0 .8rem; }
.note, caption, small { color: var(--soft); }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .8rem 0 0; }
.wide { overflow-x: auto; margin: .4rem 0 1rem; border: 1px solid var(--rule); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap;
  vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
thead th { background: var(--tint); font-weight: 600; }
th:first-child, td.text { text-align: left; }
tbody th { position: sticky; left: 0; background: var(--paper); font-weight: 600; z-index: 1; }
thead th:first-child { position: sticky; left: 0; z-index: 2; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: "\\2195"; opacity: .35; margin-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
td small { display: block; line-height: 1.35; font-size: .78em; }
td small.spread { display: inline; }
.best { background: var(--best); }
.best b, .second u { text-underline-offset: 3px; }
.measured, .rerun, .digitised, .unverified { font-style: italic; }
.plots { display: grid; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17.5rem), 1fr)); gap: .75rem; }
.plots.single { display: block; overflow-x: auto; }
.plots svg { display: block; width: 100%; height: auto; max-width: var(--w); }
.plots.single svg { min-width: min(var(--w), 34rem); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 .8rem; padding: 0; list-style: none; }
.key svg { width: .95em; height: .95em; margin-right: .4em; vertical-align: -.1em; }
details > summary { cursor: pointer; margin: .6rem 0; }
code { font: .86em/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { margin: .2rem 0 .7rem; padding: .5rem .7rem; overflow-x: auto; background: var(--tint); border-radius: 6px; }
.warn { border-left: 3px solid var(--accent); padding-left: .8rem; }
@media (max-width: 40rem) { body { padding: 1rem .8rem 3rem; font-size: 14px; } th, td { padding: .35rem .5rem; }
  tbody th { max-width: 9.5rem; white-space: normal; } }
"""

# Numbers sort by data-v, or by what they start with; what is missing goes last in both directions.
SCRIPT = """
for (const table of document.querySelectorAll('table.sort')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => {
    const cell = row.cells[i], text = (cell.dataset.v ?? cell.textContent).trim();
    const number = parseFloat(text.replace(/,/g, '').replace('\\u2212', '-').replace('\\u00b1', ''));
    return text === '' || text === '-' ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  };
  heads.forEach((head, i) => head.querySelector('button').addEventListener('click', () => {
    const now = head.getAttribute('aria-sort'), down = now === 'descending' || (now === null && i === 0) ? 1 : -1;
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down === 1 ? 'ascending' : 'descending');
    body.append(...[...body.rows].sort((a, b) => {
      const x = value(a, i), y = value(b, i);
      if (x === null || y === null) return (x === null) - (y === null);
      if (typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;
      return down * (x < y ? -1 : x > y ? 1 : 0);
    }));
  }));
}
"""


def to_html(report: Report, figures: Sequence[Plot], folder: Path, links: bool = True) -> str:
    """The page.

    Args:
        figures: drawn into the page.
        folder: where the page will lie; links to the files of runs are relative to it.
        links: False leaves them out, for a page that is passed on without the runs.
    """
    title = escape(report.recipe.title)
    sections = [("results", "Results", _blocks(report))]
    if figures:
        sections.append(("figures", "Figures", _figures(figures)))
    if report.comparisons:
        sections.append(("comparison", "Comparison", _comparisons(report)))
    sections.append(("cells", "Every cell", _cells(report)))
    if report.costs:
        sections.append(("cost", "Cost", _table(COST_HEADER, _text_rows(cost_rows(report), text=(0, 5)))))
    if report.missing:
        sections.append(("missing", "Missing", _missing(report)))
    sections.append(("runs", "Runs", _runs(report, folder, links)))
    warning = ""
    if report.missing:
        count = report.asked - report.done
        warning = f'<p class="warn">{count} of {report.asked} runs are <a href="#missing">missing</a>.</p>'
    menu = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(text)}</h2>\n{content}</section>\n' for name, text, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}</h1>\n<p>{escape(summary(report))}</p>\n<p class="note">{escape(legend(report))}</p>\n'
        f"{warning}<nav>{menu}</nav></header>\n<main>\n{body}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(header: Sequence[str], rows: Sequence[str], caption: str = "") -> str:
    heads = "".join(f'<th scope="col"><button type="button">{escape(text)}</button></th>' for text in header)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table class="sort">{title}<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table></div>\n"
    )


def _text_rows(rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> list[str]:
    """Rows of plain text; the first cell heads its row."""
    return [
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>'
            if i == 0
            else f"<td{_class('text' if i in text else '')}>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    ]


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _blocks(report: Report) -> str:
    parts = []
    for block in report.blocks:
        ranks = {column: block.ranks(column) for column in block.columns}
        rows = []
        for method in block.methods:
            cells = [_cell(block.cells[method, column], ranks[column].get(method)) for column in block.columns]
            rows.append(f'<tr><th scope="row">{escape(method)}</th>{"".join(cells)}</tr>')
        header = ["method", *(block.column_title(column) for column in block.columns)]
        parts.append(f"<h3>{escape(block.title)}</h3>\n{_table(header, rows)}")
    note = "Best of a column bold on a tint, second underlined. A click on a head sorts."
    if has_published(report):
        note += " Below: the published number and the difference of ours to it; point at it for its source."
    return f'<p class="note">{note}</p>\n' + "".join(parts)


def _cell(cell: Cell, rank: int | None) -> str:
    mean, _, rest = ours(cell).partition(" ")
    tag = {1: "b", 2: "u"}.get(rank or 0)
    shown = f"<{tag}>{mean}</{tag}>" if tag else mean
    spread, _, short = rest.partition(" (")
    small = f' <small class="spread">{escape(spread)}</small>' if spread else ""
    small += f"<small>{escape(short.rstrip(')'))}</small>" if short else ""
    if cell.published is not None:
        source = escape(f"published: {cell.published.source}", quote=True)
        difference = "" if cell.delta is None else f": {signed(cell.delta)}"
        sure = cell.published.provenance == "published"
        # The word stands in the same element as the number, so that neither is shown or copied without the other.
        word = "" if sure else f"<br>({cell.published.provenance})"
        mark = _class("" if sure else cell.published.provenance)
        small += f'<small{mark} title="{source}">vs {cell.published.value:.2f}{difference}{word}</small>'
    value = "" if cell.summary is None else f"{cell.summary.mean:.6f}"
    return f'<td data-v="{value}"{_class({1: "best", 2: "second"}.get(rank or 0, ""))}>{shown}{small}</td>'


def _figures(figures: Sequence[Plot]) -> str:
    parts, number = [], 0
    for plot in figures:
        pictures = []
        for panel in plot.panels:
            label = escape(f"{plot.title}: {panel.title}" if panel.title else plot.title, quote=True)
            pictures.append(panel_svg(panel, number).replace('role="img"', f'role="img" aria-label="{label}"', 1))
            number += 1
        key = "".join(f"<li>{marker_svg(color, marker)}{escape(name)}</li>" for name, color, marker in plot.key)
        key = f'<ul class="key">{key}</ul>' if key else ""
        kind = "plots single" if len(plot.panels) == 1 else "plots"
        parts.append(
            f'<h3>{escape(plot.title)}</h3>\n<p class="note">{escape(plot.note)}</p>{key}\n'
            f'<div class="{kind}">{"".join(pictures)}</div>\n'
        )
    return "".join(parts)


def _comparisons(report: Report) -> str:
    parts = []
    for pair in comparison_pairs(report):
        rows = [row for comparison in pair for row in comparison_rows(comparison)]
        parts.append(f"<h3>{escape(comparison_title(pair[0]))}</h3>\n")
        parts.append(f'<p class="note">{escape(comparison_note(pair[0]))}</p>\n')
        parts.append(_table(COMPARISON_HEADER, _text_rows(rows, text=(0, 1))))
    return "".join(parts)


def _cells(report: Report) -> str:
    rows = _text_rows(cell_rows(report), text=(0, 1, 2))
    return f"<details><summary>{len(rows)} cells</summary>\n{_table(CELL_HEADER, rows)}</details>\n"


def _missing(report: Report) -> str:
    parts = [f"<p>All at once:</p><pre><code>python sweep.py {escape(report.path)}</code></pre>\n<details open>"]
    parts.append(f"<summary>{len(report.missing)} places in the tables</summary>\n")
    for entry in report.missing:
        parts.append(f"<p>{escape(entry.text())}</p><pre><code>{escape(entry.command)}</code></pre>\n")
    return "".join(parts) + "</details>\n"


RUN_HEADER = ("method", "data set", "part", "shots", "seed", "accuracy, %", "seconds", "protocol", "files")


def _runs(report: Report, folder: Path, links: bool) -> str:
    rows = []
    for reading in report.readings:
        result = reading.result or {}
        seconds = result.get("elapsed_seconds")
        shown = [
            title_of(reading.dataset),
            reading.part,
            str(reading.shots),
            str(reading.seed),
            f"{reading.value:.2f}" if reading.result is not None else "-",
            "-" if seconds is None else f"{seconds:.0f}",
            str(result.get("protocol_hash", "-")) if reading.result is not None else reading.err,
        ]
        cells = "".join(
            f"<td{_class('text' if i in (0, 1, 6) else '')}>{escape(text)}</td>" for i, text in enumerate(shown)
        )
        files = _links(reading, folder) if links else "-"
        rows.append(f'<tr><th scope="row">{escape(reading.method)}</th>{cells}<td class="text">{files}</td></tr>')
    return f"<details><summary>{len(rows)} runs</summary>\n{_table(RUN_HEADER, rows)}</details>\n"


def _links(reading: Reading, folder: Path) -> str:
    """The files of a run that are there."""
    names = (("config.yaml", "config"), ("log.txt", "log"), ("result.json", "result"))
    return (
        " ".join(
            f'<a href="{escape(link(reading.folder / name, folder), quote=True)}">{text}</a>'
            for name, text in names
            if (reading.folder / name).is_file()
        )
        or "-"
    )
