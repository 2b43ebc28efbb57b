"""Handwritten digits: the 1,797 images of 8 x 8 pixels that come with scikit-learn, as a far transfer task."""

import logging
import random
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from datasets.embedded.pictures import cannot_write, root_folder
from datasets.few_shot import draw_shots, subsample_classes

logger = logging.getLogger(__name__)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE, MARGIN = 64, 8  # pixels
SHARES = (0.5, 0.2)  # training and validation, of each class; the rest is test


def split(labels: np.ndarray) -> dict[str, list[int]]:
    """Positions of the images for train, val and test: each class shuffled with seed 0, then cut 50 / 20 / 30 %."""
    rng = random.Random(0)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in range(len(NAMES)):
        rows = np.flatnonzero(labels == label).tolist()
        rng.shuffle(rows)
        first, second = round(SHARES[0] * len(rows)), round(sum(SHARES) * len(rows))
        for name, part in zip(parts, (rows[:first], rows[first:second], rows[second:])):
            parts[name] += part
    return parts


def picture(digit: np.ndarray) -> Image.Image:
    """RGB image of 64 x 64 pixels, black on white with a margin of 8, of an 8 x 8 digit with ink from 0 to 16."""
    ink = np.round(255 - digit * (255 / 16)).astype(np.uint8)
    inner = SIZE - 2 * MARGIN
    canvas = Image.new("L", (SIZE, SIZE), 255)
    canvas.paste(Image.fromarray(ink).resize((inner, inner), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    return canvas.convert("RGB")


@DATASET_REGISTRY.register()
class Digits(DatasetBase):
    """Ten classes, named in words.

    Raises:
        OSError: DATASET.ROOT is not set, or cannot be written.
    """

    dataset_dir = "digits"
    domains = ("digits",)
    template = "a picture of the number {}."

    def __init__(self, cfg) -> None:
        from sklearn.datasets import load_digits  # slow to import, and needed here only

        root = root_folder(cfg.DATASET.ROOT, "Digits")
        self.items_root = str(root)
        folder = root / self.dataset_dir
        data = load_digits()
        _write(folder, data.images)
        items = {
            name: [
                Datum(str(folder / f"{row:04d}.png"), int(data.target[row]), 0, NAMES[data.target[row]]) for row in rows
            ]
            for name, rows in split(data.target).items()
        }
        train, val = draw_shots(cfg, self, items["train"], items["val"])
        train, val, test = subsample_classes(train, val, items["test"], subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)


def _write(folder: Path, images: np.ndarray) -> None:
    """Write the pictures that are not there; each file appears at once."""
    last = folder / "COMPLETE"
    if last.is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if last.is_file():
                return
            logger.info("Writing %d pictures of digits to %s", len(images), folder)
            for row, digit in enumerate(images):
                picture(digit).save(folder / f"{row:04d}.png")
            last.write_text(f"{len(images)}\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error) from error
