"""Draws what `align_step` and `shots` have printed: cost against the number of classes, of modes, and of shots.

Of several measurements of the same setting the last one counts. A panel without figures is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

WAYS = {"reference": ("plain", "#c2442d"), "fp32": ("ours, fp32", "#2f6fb2"), "bf16": ("ours, bf16", "#3f9a5f")}
USUAL = {"classes": 100, "modes": 4}
Curve = dict[float, float]
Panel = tuple[str, str, str, dict[str, Curve]]
"""Title, horizontal axis, vertical axis, and the curves by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="output of benchmarks")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="PNG")


def records(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The JSON lines of all files, in order. Raises ValueError for a file without any."""
    found: list[dict[str, Any]] = []
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
        if not lines:
            raise ValueError(f"{file} has no JSON line of a benchmark")
        found += lines
    return found


def steps(found: list[dict[str, Any]], axis: str, figure: str) -> dict[str, Curve]:
    """A figure of ALIGN's step against `classes` or `modes`, the other at its usual value; by precision and plain."""
    (other,) = set(USUAL) - {axis}
    curves: dict[str, Curve] = {}
    for record in found:
        settings = record["settings"]
        if record["benchmark"] != "align_step" or settings[other] != USUAL[other]:
            continue
        for name, way in ((figure, settings["precision"]), (f"reference_{figure.removeprefix('step_')}", "reference")):
            if record["figure"] == name:
                curves.setdefault(way, {})[settings[axis]] = record["value"]
    return {way: dict(sorted(curves[way].items())) for way in WAYS if way in curves}


def trainings(found: list[dict[str, Any]]) -> dict[str, Curve]:
    """Seconds of a training against shots, by method."""
    curves: dict[str, Curve] = {}
    for record in found:
        if record["benchmark"] == "shots":
            curves.setdefault(record["settings"]["method"], {})[record["settings"]["shots"]] = record["value"]
    return curves


def panels(found: list[dict[str, Any]]) -> list[Panel]:
    every: list[Panel] = [
        ("ALIGN, training step", "classes", "processor seconds", steps(found, "classes", "step_cpu_s")),
        ("ALIGN, training step", "classes", "peak memory, GiB", steps(found, "classes", "peak_gib")),
        ("ALIGN, training step, 100 classes", "modes M = N", "processor seconds", steps(found, "modes", "step_cpu_s")),
        ("a whole training, embedded model", "shots", "processor seconds", trainings(found)),
    ]
    return [panel for panel in every if any(len(curve) > 1 for curve in panel[3].values())]


def draw(axes: Axes, panel: Panel) -> None:
    title, across, up, curves = panel
    for name, curve in curves.items():
        axes.loglog(list(curve), list(curve.values()), marker="o", markersize=3, **style_of(name))
    ticks = sorted({x for curve in curves.values() for x in curve})
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def style_of(name: str) -> dict[str, str]:
    if name in WAYS:
        label, color = WAYS[name]
        return {"label": label, "color": color}
    return {"label": name}


def run(arguments: argparse.Namespace) -> None:
    try:
        chosen = panels(records(arguments.files))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    if not chosen:
        raise SystemExit(
            "error: the files have no curve, expected the output of align_step or shots for several values"
        )
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, chosen):
        draw(axes, panel)
    figure.savefig(arguments.output, dpi=120)
