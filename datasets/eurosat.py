"""EuroSAT: satellite photos of land use, RGB version."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from datasets.prepare.splits import Splits, split_class_folders
from datasets.standard import KnownDataset

NEW_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(KnownDataset):
    """Ten kinds of land, in the order of `NEW_NAMES`."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        return split_class_folders(folder / cls.image_dir, new_cnames=NEW_NAMES, rng=rng)
