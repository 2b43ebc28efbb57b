"""Pictures of unmasked token alignment: python -m tools.uta_figures masks | curves | similarity ... OUTPUT.png.

masks: examples of every masking, and how often each place of the grid is kept.
curves: zero-shot accuracy of runs during training, against the time they have trained (wall or processor time).
similarity: cosines between the patches of teacher and student, and their class names or one patch of the same image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F

import clip
from dassl.engine.records import read_metrics
from dassl.utils import read_image
from trainers.parts.masking import MASKS, keep_patches

SHOWN = 5
COLORS = ("#c2442d", "#2d6cc2", "#3c8f4a", "#8a8f98", "#a05fb4")


def draw_masks(path: Path, side: int = 14, ratio: float = 0.5, rows: int = 4000) -> dict[str, tuple[float, float]]:
    """Examples of kept patches (bright) and the frequency with which a place is kept, relative to the mean.

    Returns:
        Per masking: coefficient of variation of the frequency over the places, and the border's relative frequency.
    """
    keep, figures = round((1 - ratio) * side**2), {}
    figure, axes = plt.subplots(len(MASKS), SHOWN + 1, figsize=(8.4, 5.8), layout="constrained")
    inner = np.zeros((side, side), dtype=bool)
    inner[1:-1, 1:-1] = True
    for row, kind in zip(axes, MASKS):
        chosen = keep_patches(kind, rows, (side, side), keep, torch.Generator().manual_seed(0))
        kept = torch.zeros(rows, side**2).scatter_(1, chosen, 1.0).view(rows, side, side).numpy()
        for place, mask in zip(row, kept):
            place.imshow(mask, cmap="gray", vmin=0, vmax=1)
        frequency = kept.mean(0) / kept.mean()
        figures[kind] = (float(frequency.std()), float(frequency[~inner].mean()))
        last = row[-1].imshow(frequency, cmap="RdBu_r", vmin=0, vmax=2)
        row[-1].set_title(f"border {figures[kind][1]:.2f}", fontsize=8)
        row[0].set_ylabel(kind, fontsize=9)
        for place in row:
            place.set_xticks([])
            place.set_yticks([])
    figure.colorbar(last, ax=axes[:, -1], label="kept, relative to the mean")
    figure.suptitle(f"patches that are kept (white), {side} x {side}, {ratio:.0%} masked", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figures


def draw_curves(
    runs: Sequence[tuple[str, Path]],
    path: Path,
    reference: float | None = None,
    cost: Mapping[str, float] | None = None,
) -> None:
    """Zero-shot accuracy on the test images during training.

    Args:
        runs: name and folder of each.
        path: file of the picture.
        reference: accuracy of the teacher.
        cost: processor seconds of runs by name, spread evenly over their epochs; others are drawn against wall time.
    """
    cost = cost or {}
    figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for (name, run), color in zip(runs, COLORS):
        records = read_metrics(run)
        seconds = np.cumsum([record["seconds"] for record in records if record["kind"] == "epoch"])
        if name in cost:
            seconds = np.linspace(0, cost[name], len(seconds) + 1)[1:]
        tests = {record["epoch"]: record["accuracy"] for record in records if record["kind"] == "test"}
        minutes = [seconds[epoch - 1] / 60 for epoch in tests]
        axes.plot(minutes, list(tests.values()), "o-", color=color, markersize=4, label=name)
    if reference is not None:
        axes.axhline(reference, color="#555b66", linewidth=1, linestyle="--", label="teacher")
    axes.set_xlabel("minutes of training on one core" if not cost else "minutes of processor time")
    axes.set_ylabel("zero-shot accuracy, %")
    axes.set_title("EmojiGroups test images (six unseen styles)", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


class Maps(NamedTuple):
    """Cosines of one model's patches (side, side) with the text, and with one patch of the image."""

    text: Tensor
    patch: Tensor


@torch.no_grad()
def similarity_maps(model: clip.CLIP, image: Tensor, text: str, patch: tuple[int, int]) -> Maps:
    """Maps of an image (3, H, W), a sentence and the patch in row and column `patch`."""
    tokens = F.normalize(model.encode_image(image[None]).tokens[0, 1:], dim=-1)  # (P, E)
    side = round(len(tokens) ** 0.5)
    ids = clip.tokenize([text], context_length=model.context_length, vocab_size=model.vocab_size)
    words = F.normalize(model.encode_text(ids).pooled[0], dim=-1)
    own = tokens[patch[0] * side + patch[1]]
    return Maps((tokens @ words).view(side, side), (tokens @ own).view(side, side))


def draw_similarity(models: Sequence[tuple[str, str]], images: Sequence[tuple[Path, str]], path: Path) -> list[float]:
    """One row per image and a column pair per model: similarity to the text, and to the patch in the middle.

    Returns:
        Per model after the first: mean cosine of its patch tokens with those of the first, over the images.
    """
    loaded = [(name, *clip.load(file)) for name, file in models]
    figure, axes = plt.subplots(
        len(images),
        1 + 2 * len(loaded),
        figsize=(1.5 * (1 + 2 * len(loaded)), 1.55 * len(images) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    agreement: list[list[float]] = [[] for _ in loaded]
    for number, (row, (file, name)) in enumerate(zip(axes, images)):
        picture = read_image(str(file))
        row[0].imshow(picture)
        row[0].set_ylabel(name, fontsize=8)
        first: Tensor | None = None
        for i, (label, model, preprocess) in enumerate(loaded):
            image = preprocess(picture)
            side = model.visual.input_resolution // cast(int, model.visual.patch_size)
            maps = similarity_maps(model, image, f"a picture of a {name}.", (side // 2, side // 2))
            tokens = F.normalize(model.encode_image(image[None]).tokens[0, 1:].detach(), dim=-1)
            first = tokens if first is None else first
            agreement[i].append(float((tokens * first).sum(-1).mean()))
            for place, (kind, values) in zip(row[1 + 2 * i :], zip(("text", "middle patch"), maps)):
                place.imshow(values, cmap="viridis")
                if number == 0:
                    place.set_title(f"{label}:\n{kind}", fontsize=8)
        for place in row:
            place.set_xticks([])
            place.set_yticks([])
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return [float(np.mean(values)) for values in agreement[1:]]


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a NAME=VALUE")
    return name, value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.uta_figures", description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    masks = kinds.add_parser("masks", help="examples and frequencies of every masking")
    masks.add_argument("--side", type=int, default=14, help="patches per side (default 14)")
    masks.add_argument("--ratio", type=float, default=0.5, help="share of masked patches (default 0.5)")
    curves = kinds.add_parser("curves", help="zero-shot accuracy of runs during training")
    curves.add_argument("--run", type=_pair, action="append", required=True, metavar="NAME=DIR", help="may be repeated")
    curves.add_argument("--cost", type=_pair, action="append", default=[], metavar="NAME=S", help="processor seconds")
    curves.add_argument("--reference", type=float, help="accuracy of the teacher")
    similarity = kinds.add_parser("similarity", help="similarity of patches to text and to each other")
    similarity.add_argument(
        "--model", type=_pair, action="append", required=True, metavar="NAME=CLIP", help="the first is the teacher"
    )
    similarity.add_argument(
        "--image", type=_pair, action="append", required=True, metavar="TEXT=FILE", help="class name and picture"
    )
    for part in (masks, curves, similarity):
        part.add_argument("output", type=Path, help="file of the picture")
    args = parser.parse_args(argv)
    try:
        if args.kind == "masks":
            for kind, (spread, border) in draw_masks(args.output, args.side, args.ratio).items():
                print(f"{kind}: coefficient of variation {spread:.3f}, border {border:.3f} of the mean")
        elif args.kind == "curves":
            cost = {name: float(seconds) for name, seconds in args.cost}
            draw_curves([(name, Path(run)) for name, run in args.run], args.output, args.reference, cost)
        else:
            images = [(Path(file), text) for text, file in args.image]
            for (name, _), cosine in zip(args.model[1:], draw_similarity(args.model, images, args.output)):
                print(f"{name}: mean cosine of patch tokens with those of {args.model[0][0]} {cosine:.3f}")
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
