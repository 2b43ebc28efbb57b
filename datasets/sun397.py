"""SUN397: scenes."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.prepare.splits import Splits, read_lines, split_trainval
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class SUN397(KnownDataset):
    """397 scenes; parts of a name change places: /a/apartment_building/outdoor is "outdoor apartment_building"."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        classes = [line.strip() for line in read_lines(folder / "ClassName.txt")]
        labels = {name: label for label, name in enumerate(classes)}
        images = folder / cls.image_dir
        trainval, test = (read_list(folder / f"{part}_01.txt", images, labels) for part in ("Training", "Testing"))
        return *split_trainval(trainval, rng=rng), test


def read_list(path: Path, images: Path, labels: dict[str, int]) -> list[Datum]:
    """Items of a list of paths such as /a/abbey/sun_x.jpg; ValueError if the folder is not a class."""
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        file = line.strip()
        folder = file.rpartition("/")[0]
        if folder not in labels:
            raise ValueError(f'line {number} of "{path}" is {line!r}, expected a path in a folder of ClassName.txt')
        name = " ".join(reversed(folder.split("/")[2:]))
        items.append(Datum(str(images / file[1:]), labels[folder], classname=name))
    return items
