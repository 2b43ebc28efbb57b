"""Figures of a report: few-shot curves, base-to-new bars, differences to a baseline, accuracy against cost.

A figure is a list of panels. A page shows each panel as a picture of its own, which flows with the width of the screen;
a file for a paper has them side by side.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reports.cells import Block, shots_text, title_of
from experiments.reports.document import Report
from experiments.reports.published import AVERAGE
from experiments.reports.words import signed

MOST_BANDS = 10  # methods whose spreads can be told apart in one panel
# Light enough for a dark page and dark enough for a white one.
COLORS = ("#c8502f", "#3b7fc4", "#3f9a66", "#b07d1a", "#8d63c7", "#2596a5", "#c65393", "#7d8a2e", "#9b6b4c", "#6c7fd8")
GREY = "#868d98"
MARKERS = "osD^vPXd<>"
# Stand for the colours of the page, which replace them in an SVG; on paper they are dark grey and light grey.
INK, FAINT = "#33383f", "#d4d8de"
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
}


class Panel(NamedTuple):
    """One pair of axes: its title, what draws it, and its size in inches."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 3.2
    height: float = 2.5


class Plot(NamedTuple):
    """A figure: a name for files, a title, a sentence that says how to read it, its panels, and its key."""

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    key: tuple[tuple[str, str, str], ...] = ()
    """(name, colour, marker) of what the panels show."""


class Look:
    """Colour and marker of every method, the same in all figures; without training stars, the first grey."""

    def __init__(self, report: Report):
        names = list(dict.fromkeys(name for block in report.blocks for name in block.methods))
        untrained = {name for block in report.blocks for name in block.untrained}
        trained = [name for name in names if name not in untrained]
        self.color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(trained)}
        self.marker = {name: MARKERS[(i + i // len(COLORS)) % len(MARKERS)] for i, name in enumerate(trained)}
        stars = [name for name in names if name in untrained]
        self.color.update((name, COLORS[-i % len(COLORS)] if i else GREY) for i, name in enumerate(stars))
        self.marker.update(dict.fromkeys(stars, "*"))

    def key(self, names: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
        return tuple((name, self.color[name], self.marker[name]) for name in names)


def _shots(block: Block, method: str) -> int:
    return block.cells[method, block.columns[0]].shots


def plots(report: Report, baseline: str | None = None) -> list[Plot]:
    """All figures that the results are enough for.

    Args:
        baseline: method of the differences; None: the first of the recipe.

    Raises:
        ValueError: there is no such method.
    """
    look = Look(report)
    names = [method.name for method in report.recipe.methods]
    baseline = names[0] if baseline is None else baseline
    if baseline not in look.color:
        raise ValueError(f'there is no method "{baseline}" as a baseline, choose from: {", ".join(names)}')
    drawn = [*_curves(report, look), *_bars(report, look), *_steps(report, look)]
    drawn += _differences(report, baseline)
    return [*drawn, *_costs(report, look)]


def _measured(block: Block, column: str) -> list[str]:
    return [method for method in block.methods if block.cells[method, column].summary is not None]


def _panels(block: Block) -> tuple[str, ...]:
    """The average, if the table has one, then the data sets."""
    return (AVERAGE, *block.datasets) if AVERAGE in block.columns else block.datasets


def _mean(block: Block, method: str, column: str) -> float:
    summary = block.cells[method, column].summary
    if summary is None:
        raise ValueError(f"{method} has no value for {column}")
    return summary.mean


def _curves(report: Report, look: Look) -> list[Plot]:
    """Accuracy against shots, one panel for the average and one per data set; a star without training, at 0 shots."""
    by_shots = {block.shots: block for block in report.blocks if block.metric == "accuracy"}
    if report.recipe.task != "few_shot" or len(by_shots) < 2:
        return []
    first = next(iter(by_shots.values()))

    def panel(column: str) -> Panel:
        def draw(axes: Axes) -> None:
            lines: dict[str, list[tuple[int, float, float]]] = {}
            for shots, block in by_shots.items():
                for method in _measured(block, column):
                    summary = block.cells[method, column].summary
                    own = block.cells[method, column].shots
                    if summary is not None and (own == shots or not lines.get(method)):
                        lines.setdefault(method, []).append((own, summary.mean, summary.std or 0.0))
            for method, points in lines.items():
                x, y, spread = zip(*points)
                low, high = [m - s for m, s in zip(y, spread)], [m + s for m, s in zip(y, spread)]
                if x == (0,):
                    axes.plot(x, y, "*", color=look.color[method], markersize=11, zorder=5)
                    axes.axhline(y[0], color=look.color[method], linewidth=0.8, linestyle=":")
                else:
                    axes.plot(x, y, color=look.color[method], marker=look.marker[method], markersize=4, linewidth=1.5)
                    if not crowded:
                        axes.fill_between(x, low, high, color=look.color[method], alpha=0.15, linewidth=0)
            axes.set_xticks(sorted({0, *by_shots}) if any(p[0][0] == 0 for p in lines.values()) else sorted(by_shots))
            axes.set_xlabel("training images per class")
            axes.set_ylabel("accuracy, %")
            axes.grid(True)

        return Panel(title_of(column), draw, *((6.4, 6.4 if crowded else 4.4) if len(columns) == 1 else ()))

    columns = [c for c in _panels(first) if any(_measured(block, c) for block in by_shots.values())]
    names = list(dict.fromkeys(name for block in by_shots.values() for c in columns for name in _measured(block, c)))
    crowded = len(names) > MOST_BANDS
    bands = "so many methods have no bands" if crowded else "bands are one standard deviation"
    note = f"Means over seeds; {bands}; the star is zero-shot, with its level dotted."
    return [Plot("curves", "Few-shot accuracy", note, tuple(map(panel, columns)), look.key(names))] if columns else []


def _bars(report: Report, look: Look) -> list[Plot]:
    """Base, new and H of every method: one panel for the averages and one per data set."""
    drawn = []
    for h in (block for block in report.blocks if block.metric == "h"):
        three = [b for name in ("base", "new", "h") for b in report.blocks if (b.metric, b.shots) == (name, h.shots)]
        columns = [column for column in _panels(h) if _measured(h, column)]
        panels = tuple(_bar_panel(three, column, _measured(h, column), look) for column in columns)
        if panels:
            note = "Per method from above: base (pale), new (middle) and H (full); lines are one standard deviation."
            drawn.append(Plot(f"bars_{h.shots}", f"Base to new, {shots_text(h.shots)}", note, panels))
    return drawn


def _bar_panel(three: Sequence[Block], column: str, names: Sequence[str], look: Look) -> Panel:
    def draw(axes: Axes) -> None:
        for row, method in enumerate(names):
            for offset, alpha, block in zip((-0.27, 0.0, 0.27), (0.35, 0.6, 1.0), three):
                summary = block.cells[method, column].summary
                if summary is None:
                    continue
                mean, spread = summary.mean, summary.std or 0.0
                axes.barh(row + offset, mean, 0.25, color=look.color[method], alpha=alpha)
                if spread:
                    axes.plot([mean - spread, mean + spread], [row + offset] * 2, color=INK, linewidth=0.8)
                axes.text(mean + spread + 1.8, row + offset, f"{mean:.1f}", va="center", fontsize=7)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("percent")

    return Panel(title_of(column), draw, 3.4, 0.7 + 0.52 * len(names))


def _steps(report: Report, look: Look) -> list[Plot]:
    """Incremental learning: accuracy on all classes so far and forgetting against steps, two panels per data set."""
    drawn = []
    for shots in dict.fromkeys(block.shots for block in report.blocks if block.dataset):
        shown = [b for b in report.blocks if b.shots == shots and b.metric in ("joint", "forgetting")]
        names = list(dict.fromkeys(name for b in shown for column in b.datasets for name in _measured(b, column)))
        if names:
            note = "Means over seeds; bands are one standard deviation; a dotted line has nothing to learn."
            panels = tuple(_step_panel(block, look) for block in shown)
            drawn.append(
                Plot(f"steps_{shots}", f"Incremental learning, {shots_text(shots)}", note, panels, look.key(names))
            )
    return drawn


def _step_panel(block: Block, look: Look) -> Panel:
    title = "joint accuracy" if block.metric == "joint" else block.metric

    def draw(axes: Axes) -> None:
        columns = block.datasets
        steps = {column: int(column.removeprefix("step ")) for column in columns}
        for method in block.methods:
            summaries = {steps[c]: s for c in columns if (s := block.cells[method, c].summary) is not None}
            x, y = list(summaries), [s.mean for s in summaries.values()]
            spread = [s.std or 0.0 for s in summaries.values()]
            color, line = look.color[method], ":" if method in block.untrained else "-"
            axes.plot(x, y, line, color=color, marker=look.marker[method], markersize=4, linewidth=1.5)
            low, high = [m - s for m, s in zip(y, spread)], [m + s for m, s in zip(y, spread)]
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xticks(list(steps.values()))
        axes.set_xlim(min(steps.values()) - 0.2, max(steps.values()) + 0.2)
        axes.set_xlabel("step")
        axes.set_ylabel("forgetting, points" if block.lower_is_better else "accuracy, %")
        axes.grid(True)

    return Panel(f"{title_of(block.dataset)}: {title}", draw)


def _differences(report: Report, baseline: str) -> list[Plot]:
    """Heat maps: methods down, data sets across, points gained or lost against a baseline."""
    drawn = []
    for block in report.blocks:
        if baseline not in block.methods:
            continue
        columns = [column for column in block.columns if block.cells[baseline, column].summary is not None]
        rows = [m for m in block.methods if m != baseline and any(block.cells[m, c].summary for c in columns)]
        if rows:
            title = f"{block.title}: difference to {baseline}"
            panel = _heat_panel(block, rows, columns, baseline)
            drawn.append(
                Plot(
                    f"difference_{block.name}",
                    title,
                    "In points; blue is better, red is worse.",
                    (panel,),
                )
            )
    return drawn


def _heat_panel(block: Block, rows: Sequence[str], columns: Sequence[str], baseline: str) -> Panel:
    def draw(axes: Axes) -> None:
        values = [
            [
                _mean(block, method, column) - _mean(block, baseline, column)
                if block.cells[method, column].summary is not None
                else math.nan
                for column in columns
            ]
            for method in rows
        ]
        reach = max([1.0, *(abs(v) for row in values for v in row if not math.isnan(v))])
        colors = matplotlib.colormaps["RdBu_r" if block.lower_is_better else "RdBu"]
        axes.imshow(values, cmap=colors, vmin=-reach, vmax=reach, aspect="auto")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    # Fixed colours: the cells are light in the middle of the scale on any page.
                    color = "#ffffff" if abs(value) > 0.62 * reach else "#1d2127"
                    axes.text(j, i, signed(value, 1), ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(columns)), [block.column_title(c) for c in columns], rotation=35, ha="right")
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return Panel("", draw, 1.9 + 0.62 * len(columns), 1.15 + 0.34 * len(rows))


def _costs(report: Report, look: Look) -> list[Plot]:
    """Average against learned parameters and against seconds of training, at the largest number of shots."""
    scored = [block for block in report.blocks if block.metric in ("accuracy", "h", "joint")]
    if not scored:
        return []
    block = max(scored, key=lambda candidate: candidate.shots)
    costs = {
        cost.method: cost
        for cost in report.costs
        if cost.method in block.methods and cost.shots == _shots(block, cost.method)
    }
    names = [name for name in _measured(block, AVERAGE) if name in costs]
    if len(names) < 2:
        return []

    several = AVERAGE in block.columns

    def panel(title: str, cost_of: Callable[[str], float]) -> Panel:
        def draw(axes: Axes) -> None:
            for name in names:
                star = look.marker[name] == "*"
                axes.plot(cost_of(name), _mean(block, name, AVERAGE), look.marker[name], color=look.color[name],
                          markersize=11 if star else 7)  # fmt: skip
            _scale(axes, [cost_of(name) for name in names])
            axes.set_xlabel(title)
            what = {"h": block.column_title(AVERAGE) if several else "H"}.get(block.metric, "accuracy")
            axes.set_ylabel(f"{'average ' if several and block.metric != 'h' else ''}{what}, %")
            axes.grid(True)

        return Panel(f"against {title}", draw, 3.6, 2.7)

    panels = (
        panel("learned parameters", lambda name: float(costs[name].parameters)),
        panel("seconds of training", lambda name: costs[name].seconds),
    )
    note = "A logarithmic scale begins with 0, which a method without training costs."
    title = f"Cost: {block.title[0].lower()}{block.title[1:]}"
    return [Plot("cost", title, note, panels, look.key(names))]


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the positive values span more than a decade, with 0 at its left end; else linear from 0."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 10 * min(positive):
        axes.set_xlim(-0.04 * max([1.0, *positive]), 1.1 * max([1.0, *positive]))
        return
    axes.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(min(positive))))


def _short(name: str, limit: int = 22) -> str:
    return _plain(name if len(name) <= limit else name[: limit - 1] + "…")


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: a pair of $ would be a formula."""
    return text.replace("$", r"\$")


_OUTLINES = {
    "o": (),
    "s": ((-7, -7), (7, -7), (7, 7), (-7, 7)),
    "D": ((0, -9), (9, 0), (0, 9), (-9, 0)),
    "^": ((0, -8), (8, 7), (-8, 7)),
    "v": ((0, 8), (8, -7), (-8, -7)),
    "<": ((-8, 0), (7, 8), (7, -8)),
    ">": ((8, 0), (-7, 8), (-7, -8)),
    "d": ((0, -9), (5, 0), (0, 9), (-5, 0)),
    "P": tuple(
        (3 * x, 3 * y)
        for x, y in zip((-1, 1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1), (-3, -3, -1, -1, 1, 1, 3, 3, 1, 1, -1, -1))
    ),
    "X": tuple(
        (2.2 * (x - y), 2.2 * (x + y))
        for x, y in zip((-1, 1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1), (-3, -3, -1, -1, 1, 1, 3, 3, 1, 1, -1, -1))
    ),
    "*": tuple((r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate((9.5, 3.8) * 5)),
}


def marker_svg(color: str, marker: str) -> str:
    """A marker of the figures as a small picture for their key."""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _OUTLINES[marker])
    shape = f'<polygon points="{points}"' if points else '<circle r="7.5"'
    return f'<svg viewBox="-10 -10 20 20" aria-hidden="true">{shape} fill="{color}"/></svg>'


def panel_svg(panel: Panel, number: int) -> str:
    """A panel as an <svg> element that takes its colours from the page.

    Args:
        number: tells the names inside of several pictures of one page apart.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"panel{number}"}):
        figure = Figure(figsize=(panel.width, panel.height), layout="constrained")
        axes = figure.add_subplot()
        panel.draw(axes)
        axes.set_title(panel.title)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', rf'\1 style="--w:{panel.width * 96:.0f}px" role="img"', svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'id="([^"]+)"', rf'id="p{number}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1p{number}-", svg)
    return svg.replace(INK, "var(--ink)").replace(FAINT, "var(--rule)")


def save(plot: Plot, path: Path) -> None:
    """All panels of a figure side by side in one file; its ending says which kind (png, svg, pdf)."""
    columns = min(4, len(plot.panels))
    rows = math.ceil(len(plot.panels) / columns)
    size = (columns * max(p.width for p in plot.panels), rows * max(p.height for p in plot.panels))
    entry = 0.5 + 0.08 * max((len(name) for name, *_ in plot.key), default=0)  # inches of one name of the key
    key_columns = max(1, min(5, int(size[0] / entry)))
    key_rows = math.ceil(len(plot.key) / key_columns)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plot.name}):
        figure = Figure(figsize=(size[0], size[1] + 0.24 * key_rows), layout="constrained")
        for i, panel in enumerate(plot.panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            panel.draw(axes)
            axes.set_title(panel.title)
        if plot.key:
            figure.legend(handles=_handles(plot), loc="outside lower center", ncols=key_columns, frameon=False)
        # No date: the same results give the same file.
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
        figure.savefig(path, dpi=130, metadata=metadata)


def _handles(plot: Plot) -> list[Any]:
    return [
        matplotlib.lines.Line2D(
            [], [], color=color, marker=marker, label=_plain(name), linestyle="" if marker == "*" else "-"
        )
        for name, color, marker in plot.key
    ]
