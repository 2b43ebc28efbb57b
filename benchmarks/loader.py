"""Images per second of training and test loaders without a cache, with one in memory and with one on disk.

On drawings of the embedded benchmark (64-pixel PNG) and on generated JPEG pictures of 500 x 375 pixels in class
folders (224 pixels for the model), with the transforms of the few-shot methods: random resized crop, flip and
normalisation in training, resize and centre crop in tests. A first pass fills the caches and starts the workers; then
one pass of each way in turn. `fresh` is without a cache and with workers that are started for every pass.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import datasets  # noqa: F401 - registers the data sets
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum, build_dataset
from dassl.data.transforms import build_transform

from .report import show

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 10
PICTURE = (500, 375)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", choices=("emoji", "jpeg"), default=["emoji", "jpeg"], help="default both")
    parser.add_argument("--images", type=int, default=600, help="images of a pass (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images of a batch (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="default 0 2")
    parser.add_argument("--rounds", type=int, default=3, help="measured passes of each way (default %(default)s)")
    parser.add_argument("--root", default=str(ROOT / "data"), help="folder of the embedded data (default %(default)s)")


def write_pictures(folder: Path, number: int) -> None:
    """Class folders with JPEG files that are about as large as photographs: smooth shapes with some noise."""
    random = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(PICTURE)
        pixels = np.asarray(coarse, dtype=np.int16) + random.normal(0, 12, (*PICTURE[::-1], 3)).astype(np.int16)
        path = folder / f"class {index % CLASSES}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def config(data: str, root: str, cache: str) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.CACHE_DIR = (
        ("EmojiGroups" if data == "emoji" else "folder"),
        root,
        cache,
    )
    cfg.INPUT.SIZE = (64, 64) if data == "emoji" else (224, 224)
    cfg.INPUT.INTERPOLATION, cfg.SEED = "bicubic", 1
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    return cfg


def passed(loader: Iterable[Any]) -> float:
    """Images per second of a pass."""
    start, images = time.perf_counter(), 0
    for batch in loader:
        images += len(batch["label"])
    return images / (time.perf_counter() - start)


def measure(cfg: Any, items: list[Datum], is_train: bool, arguments: argparse.Namespace) -> dict[str, float]:
    """Images per second of every way, and what the caches gain."""
    transform = build_transform(cfg, is_train)
    ways = {"none": ("none", True), "ram": ("ram", True), "disk": ("disk", True)}
    if cfg.DATALOADER.NUM_WORKERS:
        ways["fresh"] = ("none", False)
    loaders, first = {}, {}
    for name, (cache, persistent) in ways.items():
        cfg.DATALOADER.CACHE, cfg.DATALOADER.PERSISTENT_WORKERS = cache, persistent
        sampler = "RandomSampler" if is_train else "SequentialSampler"
        loaders[name] = build_data_loader(cfg, sampler, items, arguments.batch, tfm=transform, is_train=is_train)
        first[name] = passed(loaders[name])
    rounds = [{name: passed(loader) for name, loader in loaders.items()} for _ in range(arguments.rounds)]
    found = {name: statistics.median(one[name] for one in rounds) for name in loaders}
    figures = {f"{name}_images_s": rate for name, rate in found.items()}
    figures |= {f"{name} / none": rate / found["none"] for name, rate in found.items() if name != "none"}
    return figures | {f"{name}_filling / none": first[name] / found["none"] for name in ("ram", "disk")}


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for data in arguments.data:
            root = arguments.root
            if data == "jpeg":
                root = str(Path(folder) / "pictures")
                write_pictures(Path(root), arguments.images)
            dataset = build_dataset(config(data, root, folder))
            items = [*dataset.train_x, *(dataset.val or ()), *(dataset.test or ())][: arguments.images]
            for is_train in (True, False):
                for workers in arguments.workers:
                    with tempfile.TemporaryDirectory(dir=folder) as cache:
                        cfg = config(data, root, cache)
                        cfg.DATALOADER.NUM_WORKERS = workers
                        figures = measure(cfg, items, is_train, arguments)
                    settings = {"data": data, "loader": "train" if is_train else "test", "workers": workers}
                    settings |= {"images": len(items), "batch": arguments.batch}
                    show("loader", {name: float(f"{value:.4g}") for name, value in figures.items()}, settings)
