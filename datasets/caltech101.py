"""Caltech 101: objects, without the background and the second set of faces."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from datasets.prepare.splits import Splits, split_class_folders
from datasets.standard import KnownDataset

IGNORED = ("BACKGROUND_Google", "Faces_easy")
NEW_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@DATASET_REGISTRY.register()
class Caltech101(KnownDataset):
    """100 classes; labels follow the folder names, where capital letters come first (face, leopard, motorbike)."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        return split_class_folders(folder / cls.image_dir, ignored=IGNORED, new_cnames=NEW_NAMES, rng=rng)
