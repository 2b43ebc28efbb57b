"""Food-101."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from datasets.prepare.splits import Splits, split_class_folders
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class Food101(KnownDataset):
    """101 dishes; classes are named like their folders."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        return split_class_folders(folder / cls.image_dir, rng=rng)
