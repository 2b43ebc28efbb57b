"""Photos: 500 photographs in 23 classes, from free software for children."""

import random
from collections import defaultdict
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.prepare.splits import Splits, class_folders, split_groups
from datasets.standard import KnownDataset, list_folder

PACKAGES = ("gcompris", "tuxpaint")
SPLIT_SEED = 0


@DATASET_REGISTRY.register()
class Photos(KnownDataset):
    """Classes in the order of their names; the pictures of each, of both packages, are cut 50 / 20 / 30 %."""

    listed = True

    def read_items(self, folder: Path) -> Splits:
        paths: dict[str, list[Path]] = defaultdict(list)
        for package in PACKAGES:
            if not (folder / package).is_dir():
                raise FileNotFoundError(f'Photos has no folder "{folder / package}". Where to get it: {self.source}')
            for name in class_folders(folder / package):
                paths[name].append(folder / package / name)
        groups: list[list[Datum]] = [
            [item for path in paths[name] for item in list_folder(path, label, name)]
            for label, name in enumerate(sorted(paths))
        ]
        return split_groups(groups, rng=random.Random(SPLIT_SEED))
