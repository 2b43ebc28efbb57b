"""Figures of a report: few-shot curves, base-to-new bars, differences to a baseline, accuracy against cost.

A figure is a list of panels. The page shows each panel as a separate picture, which flows with the width of the
screen; a file for a paper has them side by side.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from dassl.utils.files import atomic_write
from experiments.reports.cells import Block, shots_text, title_of
from experiments.reports.document import Report
from experiments.reports.open_world import Reliability, reliability
from experiments.reports.published import AVERAGE
from experiments.reports.stats import Summary
from experiments.reports.tables import signed

MOST_BANDS = 10  # methods whose spreads can be told apart in one panel
# Light enough for a dark page and dark enough for a white one.
COLORS = ("#c8502f", "#3b7fc4", "#3f9a66", "#b07d1a", "#8d63c7", "#2596a5", "#c65393", "#7d8a2e", "#9b6b4c", "#6c7fd8")
GREY = "#868d98"
MARKERS = "osD^vPXd<>"
# Placeholders for the colors of the page, which replace them in an SVG; on paper they are dark grey and light grey.
INK, FAINT = "#33383f", "#d4d8de"
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "text.color"), INK
    ),
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
}


class Panel(NamedTuple):
    """One pair of axes: title, drawing function, and size in inches."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 3.2
    height: float = 2.5


class Plot(NamedTuple):
    """A figure: file name, title, caption, panels, and the key as (name, color, marker)."""

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    key: tuple[tuple[str, str, str], ...] = ()


class _Figures:
    """Every method has one color and marker in all figures; without training it is a star, the first of them grey."""

    def __init__(self, report: Report):
        self.report = report
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

    def line(self, axes: Axes, name: str, points: Mapping[int, Summary], band: bool = True, style: str = "-") -> None:
        """Means over x with a band of one standard deviation."""
        x, y = list(points), np.array([summary.mean for summary in points.values()])
        axes.plot(x, y, style, color=self.color[name], marker=self.marker[name], markersize=4, linewidth=1.5)
        if band:
            spread = np.array([summary.std or 0.0 for summary in points.values()])
            axes.fill_between(x, y - spread, y + spread, color=self.color[name], alpha=0.15, linewidth=0)

    def curves(self) -> list[Plot]:
        """Accuracy against shots, one panel for the average and one per data set; a star without training, at 0."""
        by_shots = {block.shots: block for block in self.report.blocks if block.metric == "accuracy"}
        if self.report.recipe.task != "few_shot" or len(by_shots) < 2:
            return []
        tables = list(by_shots.values())
        columns = [c for c in _panels(tables[0]) if any(_measured(block, c) for block in tables)]
        names = list(dict.fromkeys(name for block in tables for c in columns for name in _measured(block, c)))
        crowded = len(names) > MOST_BANDS

        def panel(column: str) -> Panel:
            def draw(axes: Axes) -> None:
                lines: dict[str, dict[int, Summary]] = {}
                for block in tables:
                    for method, summary in _measured(block, column).items():
                        lines.setdefault(method, {}).setdefault(block.cells[method, column].shots, summary)
                for method, points in lines.items():
                    if list(points) == [0]:
                        color, mean = self.color[method], points[0].mean
                        axes.plot([0], [mean], "*", color=color, markersize=11, zorder=5)
                        axes.axhline(mean, color=color, linewidth=0.8, linestyle=":")
                    else:
                        self.line(axes, method, points, band=not crowded)
                axes.set_xticks(sorted({*by_shots, *([0] if any(0 in points for points in lines.values()) else [])}))
                axes.set_xlabel("training images per class")
                axes.set_ylabel("accuracy, %")
                axes.grid(True)

            return Panel(title_of(column), draw, *((6.4, 6.4 if crowded else 4.4) if len(columns) == 1 else ()))

        bands = "so many methods have no bands" if crowded else "bands are one standard deviation"
        note = f"Means over seeds; {bands}; the star is zero-shot, with its level dotted."
        panels = tuple(map(panel, columns))
        return [Plot("curves", "Few-shot accuracy", note, panels, self.key(names))] if columns else []

    def bars(self) -> list[Plot]:
        """Base, new and H of every method: one panel for the averages and one per data set."""
        found = []
        tables = {(block.metric, block.shots): block for block in self.report.blocks}
        for shots in [shots for metric, shots in tables if metric == "h"]:
            three = [tables[metric, shots] for metric in ("base", "new", "h")]
            panels = tuple(self.bar_panel(three, column) for column in _panels(three[2]) if _measured(three[2], column))
            if panels:
                note = (
                    "Per method from above: base (pale), new (middle) and H (full); lines are one standard deviation."
                )
                found.append(Plot(f"bars_{shots}", f"Base to new, {shots_text(shots)}", note, panels))
        return found

    def bar_panel(self, three: Sequence[Block], column: str) -> Panel:
        names = list(_measured(three[2], column))

        def draw(axes: Axes) -> None:
            for offset, alpha, block in zip((-0.27, 0.0, 0.27), (0.35, 0.6, 1.0), three):
                for method, (mean, std, *_) in _measured(block, column).items():
                    if method not in names:
                        continue
                    y, spread = names.index(method) + offset, std or 0.0
                    axes.barh(y, mean, 0.25, color=self.color[method], alpha=alpha)
                    if spread:
                        axes.plot([mean - spread, mean + spread], [y, y], color=INK, linewidth=0.8)
                    axes.text(mean + spread + 1.8, y, f"{mean:.1f}", va="center", fontsize=7)
            axes.set_yticks(range(len(names)), [_short(name) for name in names])
            axes.invert_yaxis()
            axes.set_xlim(0, 112)
            axes.set_xticks(range(0, 101, 25))
            axes.set_xlabel("percent")

        return Panel(title_of(column), draw, 3.4, 0.7 + 0.52 * len(names))

    def steps(self) -> list[Plot]:
        """Joint accuracy and forgetting against the steps of incremental learning, two panels per data set."""
        found = []
        for shots in dict.fromkeys(block.shots for block in self.report.blocks if block.dataset):
            shown = [b for b in self.report.blocks if b.shots == shots and b.metric in ("joint", "forgetting")]
            names = list(dict.fromkeys(name for b in shown for column in b.datasets for name in _measured(b, column)))
            if names:
                note = "Means over seeds; bands are one standard deviation; a dotted line has nothing to learn."
                panels = tuple(map(self.step_panel, shown))
                title = f"Incremental learning, {shots_text(shots)}"
                found.append(Plot(f"steps_{shots}", title, note, panels, self.key(names)))
        return found

    def step_panel(self, block: Block) -> Panel:
        steps = {int(column.removeprefix("step ")): column for column in block.datasets}

        def draw(axes: Axes) -> None:
            for method in block.methods:
                summaries = {step: block.cells[method, column].summary for step, column in steps.items()}
                points = {step: summary for step, summary in summaries.items() if summary is not None}
                self.line(axes, method, points, style=":" if method in block.untrained else "-")
            axes.set_xticks(list(steps))
            axes.set_xlim(min(steps) - 0.2, max(steps) + 0.2)
            axes.set_xlabel("step")
            axes.set_ylabel("forgetting, points" if block.lower_is_better else "accuracy, %")
            axes.grid(True)

        title = "joint accuracy" if block.metric == "joint" else block.metric
        return Panel(f"{title_of(block.dataset)}: {title}", draw)

    def differences(self, baseline: str) -> list[Plot]:
        """Heat maps: methods down, data sets across, points gained or lost against a baseline."""
        found = []
        for block in (block for block in self.report.blocks if baseline in block.methods):
            columns = [column for column in block.columns if baseline in _measured(block, column)]
            means = np.array([[_mean(block, method, column) for column in columns] for method in block.methods])
            values = means - means[block.methods.index(baseline)]
            shown = [i for i, m in enumerate(block.methods) if m != baseline and not np.isnan(values[i]).all()]
            if columns and shown:
                panel = _heat_panel(block, [block.methods[i] for i in shown], columns, values[shown])
                title, note = f"{block.title}: difference to {baseline}", "In points; blue is better, red is worse."
                found.append(Plot(f"difference_{block.name}", title, note, (panel,)))
        return found

    def reliability(self) -> list[Plot]:
        """Reliability diagrams: accuracy where a method says a probability, one panel per method."""
        found = reliability(self.report.entries)

        def panel(name: str, bins: Reliability) -> Panel:
            def draw(axes: Axes) -> None:
                seen = bins.count > 0
                said, right = (side[seen] / bins.count[seen] for side in (bins.probability, bins.correct))
                axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
                sizes = 6 + 60 * bins.count[seen] / bins.count.sum()
                axes.plot(said, right, color=self.color[name], linewidth=1)
                axes.scatter(said, right, s=sizes, color=self.color[name])
                axes.set_xlim(0, 1)
                axes.set_ylim(0, 1)
                axes.set_xlabel("probability")
                axes.set_ylabel("accuracy")
                axes.grid(True)

            return Panel(_short(name), draw, 2.4, 2.3)

        note = "Pooled over data sets and seeds, at the most shots; larger points have more images. Dotted: calibrated."
        panels = tuple(panel(name, bins) for name, bins in found.items() if name in self.color)
        return [Plot("reliability", "Reliability", note, panels)] if panels else []

    def costs(self) -> list[Plot]:
        """Average against learned parameters and against seconds of training, at the largest number of shots."""
        scored = [block for block in self.report.blocks if block.metric in ("accuracy", "h", "joint")]
        if not scored:
            return []
        block = max(scored, key=lambda candidate: candidate.shots)
        shots = {method: block.cells[method, block.columns[0]].shots for method in block.methods}
        costs = {cost.method: cost for cost in self.report.costs if shots.get(cost.method) == cost.shots}
        points = {name: summary.mean for name, summary in _measured(block, AVERAGE).items() if name in costs}
        if len(points) < 2:
            return []
        several = AVERAGE in block.columns
        metric = (block.column_title(AVERAGE) if several else "H") if block.metric == "h" else "accuracy"

        def panel(title: str, values: Mapping[str, float]) -> Panel:
            def draw(axes: Axes) -> None:
                for name, mean in points.items():
                    size = 11 if self.marker[name] == "*" else 7
                    axes.plot(values[name], mean, self.marker[name], color=self.color[name], markersize=size)
                _scale(axes, [values[name] for name in points])
                axes.set_xlabel(title)
                axes.set_ylabel(f"{'average ' if several and block.metric != 'h' else ''}{metric}, %")
                axes.grid(True)

            return Panel(f"against {title}", draw, 3.6, 2.7)

        panels = (
            panel("learned parameters", {name: float(cost.parameters) for name, cost in costs.items()}),
            panel("seconds of training", {name: cost.seconds for name, cost in costs.items()}),
        )
        note = "A logarithmic scale begins with 0, the cost of a method without training."
        title = f"Cost: {block.title[0].lower()}{block.title[1:]}"
        return [Plot("cost", title, note, panels, self.key(list(points)))]


def plots(report: Report, baseline: str | None = None) -> list[Plot]:
    """All figures that the results are enough for.

    Args:
        baseline: method of the differences; None: the first of the recipe.

    Raises:
        ValueError: there is no such method.
    """
    figures = _Figures(report)
    names = [method.name for method in report.recipe.methods]
    baseline = names[0] if baseline is None else baseline
    if baseline not in figures.color:
        raise ValueError(f'there is no method "{baseline}" as a baseline, choose from: {", ".join(names)}')
    return [
        *figures.curves(), *figures.bars(), *figures.steps(), *figures.differences(baseline),
        *figures.reliability(), *figures.costs(),
    ]  # fmt: skip


def _measured(block: Block, column: str) -> dict[str, Summary]:
    summaries = {method: block.cells[method, column].summary for method in block.methods}
    return {method: summary for method, summary in summaries.items() if summary is not None}


def _mean(block: Block, method: str, column: str) -> float:
    summary = block.cells[method, column].summary
    return math.nan if summary is None else summary.mean


def _panels(block: Block) -> tuple[str, ...]:
    """The average, if the table has one, then the data sets."""
    return (AVERAGE, *block.datasets) if AVERAGE in block.columns else block.datasets


def _heat_panel(block: Block, rows: Sequence[str], columns: Sequence[str], values: np.ndarray) -> Panel:
    def draw(axes: Axes) -> None:
        reach = max(1.0, np.nanmax(np.abs(values)))
        colors = matplotlib.colormaps["RdBu_r" if block.lower_is_better else "RdBu"]
        axes.imshow(values, cmap=colors, vmin=-reach, vmax=reach, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):
                # Fixed colors: the cells are light in the middle of the scale on any page.
                color = "#ffffff" if abs(value) > 0.62 * reach else "#1d2127"
                axes.text(j, i, signed(value, 1), ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(columns)), [block.column_title(c) for c in columns], rotation=35, ha="right")
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return Panel("", draw, 1.9 + 0.62 * len(columns), 1.15 + 0.34 * len(rows))


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
    """Text without matplotlib's formulas, which a pair of $ would start."""
    return text.replace("$", r"\$")


def marker_svg(color: str, marker: str) -> str:
    """A marker as a small picture for the key of the page."""
    style = MarkerStyle(marker)
    outline = np.asarray(style.get_path().transformed(style.get_transform()).to_polygons()[0])
    points = " ".join(f"{16 * x:.1f},{-16 * y:.1f}" for x, y in outline)
    return f'<svg viewBox="-10 -10 20 20" aria-hidden="true"><polygon points="{points}" fill="{color}"/></svg>'


def panel_svg(panel: Panel, number: int) -> str:
    """A panel as an <svg> element that takes its colors from the page; `number` makes its ids unique on the page."""
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
    """All panels of a figure side by side in one file; its ending gives the format (png, svg, pdf)."""
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
            handles = [
                Line2D([], [], color=color, marker=marker, label=_plain(name), linestyle="" if marker == "*" else "-")
                for name, color, marker in plot.key
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=key_columns, frameon=False)
        # No date: the same results give the same file.
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
        kind = path.suffix[1:]
        atomic_write(path, lambda file: figure.savefig(file, dpi=130, format=kind, metadata=metadata))
