"""Figures of the numbers; every function takes arrays and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from align_prompt.explain.attention import Maps
from align_prompt.explain.mistakes import Outcome
from dassl.evaluation.calibration import Bins
from dassl.utils import read_image

CELL = 1.25  # inches of a small picture
LEAST_RATIO = 1.05  # of plan to uniform plan, at the ends of the color scale at least
NAMED_CLASSES, NUMBERED_CLASSES, COLORED_CLASSES = 40, 15, 20
RATIO_LABEL = "plan / uniform plan"
BLUE, GRAY, RED = "#2f6fb2", "#6b7280", "#b23a2f"


def _grid(rows: int, columns: int, left: float = 0.0, right: float = 0.0, top: float = 0.5) -> tuple[Figure, Any]:
    """Figure of small pictures, with room in inches at the left, right and top."""
    width, height = left + columns * CELL + right, top + rows * CELL + 0.1
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    sides = {"left": left / width, "right": 1 - right / width, "bottom": 0.1 / height, "top": 1 - top / height}
    figure.subplots_adjust(**sides, wspace=0.05, hspace=0.05)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _over(axis: Any, picture: np.ndarray, values: np.ndarray, **how: Any) -> Any:
    """Draw values (side, side) as squares over the picture (H, W, 3) in gray."""
    extent = (0, picture.shape[1], picture.shape[0], 0)
    axis.imshow(picture.mean(axis=-1), cmap="gray", vmin=-0.5, vmax=1.0, extent=extent)
    return axis.imshow(values, extent=extent, alpha=0.62, interpolation="nearest", **how)


def ratio_limit(*ratios: np.ndarray) -> float:
    """Upper end of a color scale of ratios, above 1: the largest; its lower end is one through it, or less."""
    return max(LEAST_RATIO, *(float(np.nanmax(ratio)) for ratio in ratios))


def _ratio_scale(limit: float) -> dict[str, Any]:
    from matplotlib.colors import LogNorm

    return {"cmap": "RdBu_r", "norm": LogNorm(1 / limit, limit)}


def _ratio_bar(figure: Figure, image: Any, axes: Any, limit: float) -> None:
    box = axes[0, -1].get_position()
    width, height = figure.get_size_inches()
    bottom = max(axes[-1, -1].get_position().y0, box.y1 - 2.4 / height)
    bar = figure.add_axes((box.x1 + 0.15 / width, bottom, 0.14 / width, box.y1 - bottom))
    _label_ratios(figure.colorbar(image, cax=bar), limit)


def _label_ratios(bar: Any, limit: float) -> None:
    bar.set_label(RATIO_LABEL)
    bar.set_ticks([1 / limit, 1.0, limit], labels=[f"≤ {1 / limit:.3g}", "1", f"{limit:.3g}"])
    bar.ax.minorticks_off()


def token_plans(
    picture: np.ndarray, ratio: np.ndarray, names: Sequence[str], columns: Sequence[str], limit: float
) -> Figure:
    """Plans over the picture: a row for each token, a column for each visual mode or epoch.

    Args:
        picture: (H, W, 3) in [0, 1], as the model sees it.
        ratio: (columns, side, side, L) plan divided by the uniform plan.
        names: L tokens.
        columns: their titles.
        limit: end of the color scale, see `ratio_limit`.
    """
    figure, axes = _grid(len(names), len(columns), left=1.2, right=0.95)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        for column, values in enumerate(ratio):
            image = _over(axes[row, column], picture, values[..., row], **_ratio_scale(limit))
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, fontsize=8)
    _ratio_bar(figure, image, axes, limit)
    return figure


def matrix_plan(ratio: np.ndarray, rows: str = "visual prompt", columns: str = "textual prompt") -> Figure:
    """A plan between prompts (M, N), divided by the uniform plan."""
    figure = Figure(figsize=(1.9 + 0.75 * ratio.shape[1], 1.2 + 0.6 * ratio.shape[0]), dpi=110, layout="constrained")
    axis, limit = figure.subplots(), ratio_limit(ratio)
    image = axis.imshow(ratio, aspect="auto", **_ratio_scale(limit))
    for (m, n), value in np.ndenumerate(ratio):
        strong = abs(np.log(value)) > 0.6 * np.log(limit) if value > 0 else True
        axis.text(n, m, f"{value:.3f}", ha="center", va="center", fontsize=9, color="white" if strong else "black")
    axis.set(xlabel=columns, ylabel=rows)
    axis.set_xticks(range(ratio.shape[1]), [str(n + 1) for n in range(ratio.shape[1])])
    axis.set_yticks(range(ratio.shape[0]), [str(m + 1) for m in range(ratio.shape[0])])
    _label_ratios(figure.colorbar(image), limit)
    return figure


def set_plan(picture: np.ndarray, ratio: np.ndarray) -> Figure:
    """Plan of PLOT (N, rows, columns), divided by the uniform plan, over the picture: a column for each prompt."""
    figure, axes = _grid(1, 1 + len(ratio), right=0.95)
    axes[0, 0].imshow(picture)
    axes[0, 0].set_title("picture", fontsize=8)
    limit = ratio_limit(ratio)
    for n, values in enumerate(ratio):
        image = _over(axes[0, n + 1], picture, values, **_ratio_scale(limit))
        axes[0, n + 1].set_title(f"prompt {n + 1}", fontsize=8)
    _ratio_bar(figure, image, axes, limit)
    return figure


def prompt_plans(ratio: np.ndarray, titles: Sequence[str]) -> Figure:
    """Plans between prompts (E, M, N) of several epochs, divided by the uniform plan, on one color scale."""
    figure, axes = _grid(1, len(ratio), left=0.5, right=0.95, top=0.75)
    limit = ratio_limit(ratio)
    for axis, values, title in zip(axes[0], ratio, titles):
        image = axis.imshow(values, aspect="auto", **_ratio_scale(limit))
        axis.set_title(title, fontsize=8)
    axes[0, 0].set_ylabel("visual prompts", fontsize=8)
    axes[0, 0].set_xlabel("textual", fontsize=8)
    _ratio_bar(figure, image, axes, limit)
    return figure


def distances_by_epoch(epochs: Sequence[int], lines: Sequence[tuple[str, Sequence[float], str]]) -> Figure:
    """Lines over the epochs, (name, distance from the uniform plan of each epoch, color); equal names stand once."""
    figure = Figure(figsize=(5.6, 3.6), dpi=110, layout="constrained")
    axis, named = figure.subplots(), set[str]()
    for name, values, color in lines:
        axis.plot(epochs, values, color=color, linewidth=1, marker=".", label=None if name in named else name)
        named.add(name)
    axis.set(xlabel="epoch", ylabel="mass that is elsewhere than\nin the uniform plan (share)", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8)
    return figure


def attention_maps(picture: np.ndarray, plain: Maps, method: Maps, name: str, attention: str) -> Figure:
    """Attention and gradient maps of plain CLIP and of every visual mode, each from its least to its most."""
    modes = len(method.attention)
    figure, axes = _grid(2, 2 + modes, left=0.8)
    titles = ["picture", "plain CLIP", *(f"{name}, {m + 1}" if modes > 1 else name for m in range(modes))]
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=8)
    for row, (label, field) in enumerate(((attention, "attention"), ("gradient", "gradient"))):
        axes[row, 0].imshow(picture)
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
        values = [getattr(plain, field)[0], *getattr(method, field)]
        for axis, value in zip(axes[row, 1:], values):
            _over(axis, picture, value.numpy(), cmap="inferno")
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Counts (C, C), row = true class, colored by the share of the row."""
    classes = len(names)
    side = min(12.0, max(3.5, 1.5 + 0.32 * classes))
    figure = Figure(figsize=(side + 1.2, side), dpi=110, layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if classes <= NAMED_CLASSES:
        axis.set_xticks(range(classes), names, rotation=90, fontsize=7)
        axis.set_yticks(range(classes), names, fontsize=7)
    if classes <= NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if share[row, column] > 0.5 else "black" if count else "lightgray"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def reliability_diagram(bins: Bins, error: float) -> Figure:
    """Accuracy of the predictions of each bin of probability, over a histogram of the probabilities."""
    figure = Figure(figsize=(4.2, 4.6), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    count = len(bins.count)
    centers = (np.arange(count) + 0.5) / count
    upper.bar(centers, np.nan_to_num(bins.accuracy.numpy()), 0.92 / count, color=BLUE, label="accuracy")
    upper.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1, label="calibrated")
    upper.plot(bins.probability, bins.accuracy, "o", color=RED, markersize=4, label="mean probability of the bin")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=f"expected calibration error {100 * error:.1f} %")
    upper.title.set_fontsize(10)
    upper.legend(fontsize=7, loc="upper left")
    lower.bar(centers, bins.count, 0.92 / count, color=GRAY)
    lower.set(xlabel="probability of the predicted class", ylabel="pictures")
    return figure


def worst_mistakes(found: Outcome, places: Sequence[int], names: Sequence[str], columns: int = 5) -> Figure:
    """Wrong predictions with their pictures, the true class below the predicted one."""
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(columns * 1.75, rows * 2.15), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, place in zip(axes.flat, places):
        axis.imshow(read_image(found.paths[place]).resize((128, 128), Image.Resampling.BILINEAR))
        said, true = (names[int(label[place])][:24] for label in (found.predicted, found.labels))
        axis.set_title(f"{said}, {100 * found.probability[place]:.0f} %\ntrue: {true}", fontsize=7)
    return figure


def scatter(before: np.ndarray, after: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Features in two dimensions (n, 2) by plain CLIP and by the method; those of the first classes in color."""
    from matplotlib import colormaps

    figure = Figure(figsize=(9.2, 4.2), dpi=110, layout="constrained")
    colors = colormaps["tab20"]
    for axis, points, title in zip(figure.subplots(1, 2), (before, after), ("plain CLIP", "method")):
        for label, name in enumerate(names):
            some = points[labels == label]
            if label < COLORED_CLASSES:
                axis.scatter(some[:, 0], some[:, 1], s=9, color=colors(label), label=name)
            else:
                axis.scatter(some[:, 0], some[:, 1], s=9, color=GRAY, marker="x", linewidths=0.7)
        axis.set(xticks=[], yticks=[], title=title)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=7, markerscale=2)
    return figure


def moved_labels(before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> Figure:
    """Arrows from where label tokens started (K, 2) to where they are, each with the name of its class."""
    figure = Figure(figsize=(6.4, 5.4), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.scatter(before[:, 0], before[:, 1], s=14, color=GRAY, label="start")
    axis.scatter(after[:, 0], after[:, 1], s=14, color=RED, label="learned")
    for start, end, name in zip(before, after, names):
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GRAY, "linewidth": 0.7})
        if len(names) <= NAMED_CLASSES:
            axis.annotate(name, end, fontsize=7, xytext=(3, 3), textcoords="offset points")
    axis.set(xlabel="first principal component", ylabel="second principal component")
    axis.legend(fontsize=8)
    return figure
