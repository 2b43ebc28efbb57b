"""Oxford Flowers 102."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import read_json
from datasets.prepare.splits import Splits, read_mat, split_groups
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class OxfordFlowers(KnownDataset):
    """102 flowers, named by cat_to_name.json."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        labels = read_mat(folder / "imagelabels.mat", "labels")[0]
        names = read_json(folder / "cat_to_name.json")
        groups: dict[int, list[Datum]] = {}
        for number, value in enumerate(labels.tolist(), start=1):
            if str(value) not in names:
                raise ValueError(f'"{folder / "cat_to_name.json"}" has no name for class {value}')
            path = folder / cls.image_dir / f"image_{number:05d}.jpg"
            groups.setdefault(value, []).append(Datum(str(path), int(value) - 1, classname=names[str(value)]))
        return split_groups(list(groups.values()), rng=rng)
