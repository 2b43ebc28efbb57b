"""Zero-shot accuracy by class token and by patches: python -m tools.patch_accuracy MODEL...

Methods that compare single patches with text (PLOT, ALIGN) need patches that say what is in the image; this tells how
far those of a backbone do. With --run the course of a training with TRAINER.CONTRASTIVE.TOKEN_WEIGHT is drawn, too.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import clip
import datasets  # noqa: F401 - registers the data sets
from clip import CLIP, Encoded
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine.checkpoints import read_checkpoint
from dassl.engine.records import read_metrics
from dassl.utils import read_image
from tools.emoji_zero_shot import UNSEEN

BATCH = 256
Preprocess = Callable[[Image.Image], Tensor]


class Accuracy(NamedTuple):
    """Percent of images whose class is right, by what is compared with the sentences; the fields of `patch_scores`."""

    class_token: float
    mean_patch: float
    best_patch: float
    cosine: float
    """Mean cosine between two patches of an image, which is 1 where all patches are alike."""


def patch_scores(image: Encoded, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities (B, C) of images with sentences (C, E), both as encoded, by class token, mean patch and best patch.

    The mean is that of the cosines of all patches, the best is the largest of them.
    """
    text = F.normalize(text, dim=-1).T
    cosine = F.normalize(image.tokens[:, 1:], dim=-1) @ text  # (B, P, C)
    return F.normalize(image.pooled, dim=-1) @ text, cosine.mean(dim=1), cosine.amax(dim=1)


def mean_cosine(patches: Tensor) -> Tensor:
    """Mean cosine between two different patches of each image, (B, P, E) -> (B,)."""
    count = patches.shape[1]
    total = F.normalize(patches, dim=-1).sum(dim=1).square().sum(dim=-1)  # all P * P pairs, P of them with themselves
    return (total - count) / (count * (count - 1))


@torch.no_grad()
def measure(model: CLIP, preprocess: Preprocess, dataset: DatasetBase, items: Sequence[Datum]) -> Accuracy:
    """Accuracy of a model, in evaluation mode and fp32, on items of a data set.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("there are no images to measure on")
    sentences = [dataset.template.format(name) for name in dataset.classnames]
    text = model.encode_text(clip.tokenize(sentences, vocab_size=model.vocab_size)).pooled
    total = torch.zeros(4)
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        image = model.encode_image(torch.stack([preprocess(read_image(item.impath)) for item in some]))
        label = torch.tensor([item.label for item in some])
        right = [(scores.argmax(dim=1) == label).sum() for scores in patch_scores(image, text)]
        total += torch.stack([*right, mean_cosine(image.tokens[:, 1:]).sum()])
    *shares, cosine = (total / len(items)).tolist()
    return Accuracy._make([*(100 * share for share in shares), cosine])


def emoji_groups(root: str, style: str) -> DatasetBase:
    """EmojiGroups with training and test in one style, as configs/datasets/emoji_groups_flat.yaml has it."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = root
    cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = [style]
    return DATASET_REGISTRY.get("EmojiGroups")(cfg)


def markdown(rows: Sequence[tuple[str, str, int, Accuracy]]) -> str:
    """Table of (model, style, images, accuracy)."""
    lines = [
        "| backbone | style | images | class token | mean patch | best patch | cosine between patches |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, style, count, (*right, cosine) in rows:
        shown = " | ".join(f"{value:.1f}" for value in right)
        lines.append(f"| {name} | {style} | {count} | {shown} | {cosine:.2f} |")
    return "\n".join(lines) + "\n"


def draw_curve(
    start: CLIP, preprocess: Preprocess, run: Path, dataset: DatasetBase, path: Path
) -> list[tuple[int, Accuracy]]:
    """Draw test accuracy and losses of a training against its minutes; returns (epoch, accuracy), 0 for `start`.

    Args:
        start: the backbone the training began with.
        preprocess: its transform.
        run: its folder, with the checkpoints that TRAIN.CHECKPOINT_FREQ keeps.

    Raises:
        FileNotFoundError: the folder has no records or no checkpoints.
    """
    files = {int(file.name.rpartition("-")[2]): file for file in (run / "clip").glob("model.pth.tar-*")}
    if not files:
        raise FileNotFoundError(f'"{run / "clip"}" has no checkpoints: train with TRAIN.CHECKPOINT_FREQ')
    items = dataset.test or []
    found = [(0, measure(start, preprocess, dataset, items))]
    model = copy.deepcopy(start)
    for epoch, file in sorted(files.items()):
        model.load_state_dict(read_checkpoint(file)["state_dict"])
        found.append((epoch, measure(model, preprocess, dataset, items)))
    steps = {record["epoch"]: record for record in read_metrics(run) if record["kind"] == "epoch"}
    minutes = {0: 0.0}
    for epoch, record in sorted(steps.items()):
        minutes[epoch] = minutes[epoch - 1] + record["seconds"] / 60
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6.5, 4.6), sharex=True, layout="constrained")
    times = [minutes[epoch] for epoch, _ in found]
    for field, color in (("class_token", "#c2442d"), ("mean_patch", "#2f6fa8"), ("best_patch", "#6b9e3f")):
        values = [getattr(accuracy, field) for _, accuracy in found]
        upper.plot(times, values, "o-", color=color, markersize=4, label=field.replace("_", " "))
    for term, color in (("contrastive", "#c2442d"), ("tokens", "#2f6fa8")):
        shown = [epoch for epoch in sorted(steps) if term in steps[epoch]]
        lower.plot(
            [minutes[epoch] for epoch in shown], [steps[epoch][term] for epoch in shown], color=color, label=term
        )
    upper.set_ylabel("zero-shot accuracy, %")
    upper.set_ylim(bottom=0)
    lower.set_ylabel("training loss")
    lower.set_xlabel("minutes of training on one core")
    upper.set_title(f"{len(items)} test images of EmojiGroups in a style that training never saw", fontsize=10)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.patch_accuracy",
        description="Zero-shot accuracy on EmojiGroups by class token, mean patch and best patch.",
    )
    parser.add_argument("model", nargs="+", help="names or files of CLIPs, such as emoji-ViT-S/8")
    parser.add_argument("--styles", nargs="+", default=UNSEEN, metavar="STYLE", help="default: the six unseen ones")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="concepts (default test)")
    parser.add_argument("--root", default="data", help="folder of the pictures (default data)")
    parser.add_argument(
        "--run", type=Path, help="training to draw, which began with the first model; in the first style"
    )
    parser.add_argument("--curve", type=Path, default=Path("curve.png"), help="file for it (default curve.png)")
    args = parser.parse_args(argv)
    try:
        models = {name: clip.load(name) for name in args.model}
        rows = []
        for style in args.styles:
            dataset = emoji_groups(args.root, style)
            items = getattr(dataset, args.split)
            rows += [(name, style, len(items), measure(*model, dataset, items)) for name, model in models.items()]
        print(markdown(rows))
        if args.run is not None:
            dataset = emoji_groups(args.root, args.styles[0])
            for epoch, accuracy in draw_curve(*models[args.model[0]], args.run, dataset, args.curve):
                print(f"epoch {epoch}: " + ", ".join(f"{name} {x:.2f}" for name, x in accuracy._asdict().items()))
            print(f"curve written to {args.curve}")
    except (OSError, ValueError, KeyError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
