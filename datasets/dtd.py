"""Describable Textures (DTD)."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from datasets.prepare.splits import Splits, split_class_folders
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class DescribableTextures(KnownDataset):
    """47 textures; classes are named like their folders."""

    # Readers written for CoOp find the procedure here.
    read_and_split_data = staticmethod(split_class_folders)

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        return split_class_folders(folder / cls.image_dir, rng=rng)
