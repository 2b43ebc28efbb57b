"""Zero-shot accuracy of a CLIP on the embedded data sets, per style: python -m tools.emoji_zero_shot MODEL.

Every picture of a style counts, whatever the split, since nothing is trained. The training curve of a pre-training run
is drawn beside it with --run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F
from tqdm import tqdm

import clip
import datasets  # noqa: F401 - registers the data sets
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.engine.records import read_metrics
from dassl.utils import read_image

SETS = ("Groups", "Animals", "Food", "Objects", "Travel", "Faces", "People", "Clocks")
SEEN = ("noto", "twemoji", "emojione")
UNSEEN = ("fluent-flat", "fluent-3d", "streamline", "openmoji", "fluent-hc", "openmoji-black")


class ZeroShot:
    """A CLIP with the features of every picture it has seen, so that data sets that share pictures share the work."""

    def __init__(self, name: str):
        self.model, self.preprocess = clip.load(name)
        self.features: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def accuracy(self, items: list[Datum], classnames: list[str], template: str) -> float | None:
        """Percent of items whose class has the closest sentence; None without items."""
        if not items:
            return None
        fresh = [item.impath for item in items if item.impath not in self.features]
        for start in range(0, len(fresh), 256):
            paths = fresh[start : start + 256]
            images = torch.stack([self.preprocess(read_image(path)) for path in paths])
            self.features.update(zip(paths, F.normalize(self.model.encode_image(images).pooled, dim=-1)))
        ids = clip.tokenize([template.format(name) for name in classnames], vocab_size=self.model.vocab_size)
        text = F.normalize(self.model.encode_text(ids).pooled, dim=-1)
        image = torch.stack([self.features[item.impath] for item in items])
        label = torch.tensor([item.label for item in items])
        return 100 * float(((image @ text.T).argmax(dim=1) == label).float().mean())


def measure(model: str, root: str) -> list[tuple[str, int, list[float | None]]]:
    """Per data set: name, number of classes, accuracies in the seen styles, then in the unseen ones."""
    judge, rows = ZeroShot(model), []
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = root
    for short in tqdm(SETS, desc="data sets", disable=None):
        dataset = DATASET_REGISTRY.get(f"Emoji{short}")(cfg)
        values = []
        for styles in (SEEN, UNSEEN, *((style,) for style in UNSEEN)):
            items = [item for style in styles for item in dataset.style_items(style)]
            values.append(judge.accuracy(items, list(dataset.classes), dataset.template))
        rows.append((f"Emoji{short}", len(dataset.classes), values))
    cfg.DATASET.NAME = "Digits"
    digits = DATASET_REGISTRY.get("Digits")(cfg)
    found = judge.accuracy(digits.test, digits.classnames, digits.template)
    rows.append(("Digits", digits.num_classes, [None, found]))
    return rows


def markdown(rows: list[tuple[str, int, list[float | None]]]) -> str:
    """The rows as a table; chance level is 100 / classes."""
    lines = [
        f"| data set | classes | chance | seen styles | unseen styles | {' / '.join(UNSEEN)} |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, classes, values in rows:
        seen, unseen, *styles = ["-" if value is None else f"{value:.1f}" for value in values]
        lines.append(f"| {name} | {classes} | {100 / classes:.1f} | {seen} | {unseen} | {' / '.join(styles)} |")
    return "\n".join(lines) + "\n"


def draw_curve(runs: Sequence[Path], path: Path) -> None:
    """Zero-shot accuracy and training loss of a pre-training in one or more stages, against hours of training."""
    figure, accuracy = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    loss, hours = accuracy.twinx(), 0.0
    for run in runs:
        records = read_metrics(run)
        steps = {record["epoch"]: record for record in records if record["kind"] == "epoch"}
        times = dict(zip(steps, hours + np.cumsum([step["seconds"] for step in steps.values()]) / 3600))
        tests = {record["epoch"]: record["accuracy"] for record in records if record["kind"] == "test"}
        accuracy.plot([times[epoch] for epoch in tests], list(tests.values()), "o-", color="#c2442d", markersize=4)
        loss.plot(list(times.values()), [step["loss"] for step in steps.values()], color="#8a8f98", linewidth=1)
        if run != runs[0]:
            accuracy.axvline(hours, color="#d5d8dc", linewidth=1, zorder=0)
        hours = max(times.values())
    accuracy.set_xlabel("hours of training on one core" + ("; lines: next stage" if len(runs) > 1 else ""))
    accuracy.set_ylabel("zero-shot accuracy, %", color="#c2442d")
    accuracy.set_title("EmojiGroups test images (six unseen styles) during pre-training", fontsize=10)
    loss.set_ylabel("training loss", color="#6a6f78")
    for axes in (accuracy, loss):
        axes.spines["top"].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.emoji_zero_shot", description="Zero-shot accuracy per embedded data set and style."
    )
    parser.add_argument("model", help="name or file of a CLIP for 64-pixel images, such as emoji-ViT-S/8")
    parser.add_argument("--root", default="data", help="folder of the pictures (default data)")
    parser.add_argument("--run", type=Path, nargs="+", help="folders of a pre-training in stages, to draw its curve")
    parser.add_argument("--curve", type=Path, default=Path("curve.png"), help="file for the curve (default curve.png)")
    args = parser.parse_args(argv)
    try:
        print(markdown(measure(args.model, args.root)))
        if args.run is not None:
            draw_curve(args.run, args.curve)
            print(f"curve written to {args.curve}")
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
