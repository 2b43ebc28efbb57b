"""Oxford-IIIT Pet: breeds of cats and dogs."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.prepare.splits import Splits, read_lines, split_trainval
from datasets.standard import KnownDataset

from .few_shot import read_split, save_split, subsample_classes


@DATASET_REGISTRY.register()
class OxfordPets(KnownDataset):
    """37 breeds, named as in the image files, in lower case."""

    # Readers written for CoOp find the shared functions here.
    read_split = staticmethod(read_split)
    save_split = staticmethod(save_split)
    split_trainval = staticmethod(split_trainval)
    subsample_classes = staticmethod(subsample_classes)

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        images, lists = folder / cls.image_dir, folder / "annotations"
        trainval, test = (read_list(lists / f"{part}.txt", images) for part in ("trainval", "test"))
        return *split_trainval(trainval, rng=rng), test


def read_list(path: Path, images: Path) -> list[Datum]:
    """Items of a list of lines "<image> <class from 1> <species> <breed>"; ValueError for any other line."""
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split(" ")
        if len(fields) != 4 or not fields[1].isdigit() or int(fields[1]) < 1:
            raise ValueError(
                f'line {number} of "{path}" is {line!r}, expected "<image> <class from 1> <species> <breed>"'
            )
        name = "_".join(fields[0].split("_")[:-1]).lower()
        items.append(Datum(str(images / f"{fields[0]}.jpg"), int(fields[1]) - 1, classname=name))
    return items
