"""Stanford Cars: makes, models and years."""

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.prepare.splits import Splits, read_mat, split_trainval
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class StanfordCars(KnownDataset):
    """196 cars, the year first: "2000 AM General Hummer SUV"."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        meta = folder / "devkit" / "cars_meta.mat"
        names = [str(name[0]) for name in read_mat(meta, "class_names")[0]]
        trainval = read_annotations(folder / "devkit" / "cars_train_annos.mat", folder / "cars_train", names)
        test = read_annotations(folder / "cars_test_annos_withlabels.mat", folder / "cars_test", names)
        return *split_trainval(trainval, rng=rng), test


def read_annotations(path: Path, images: Path, names: list[str]) -> list[Datum]:
    """Items of a list of annotations with the fields `fname` and `class` (from 1).

    Args:
        names: class names with the year last.

    Raises:
        ValueError: the file is damaged, has no classes, or a class has no name.
    """
    annotations = read_mat(path, "annotations")
    fields = annotations.dtype.names or ()
    if "fname" not in fields or "class" not in fields:
        raise ValueError(f'annotations in "{path}" have the fields {", ".join(fields)}, expected fname and class')
    items = []
    for row in annotations[0]:
        file, label = str(row["fname"][0]), int(row["class"][0, 0]) - 1
        if not 0 <= label < len(names):
            raise ValueError(f'"{path}" gives {file} the class {label + 1}, expected 1 to {len(names)}')
        *words, year = names[label].split(" ")
        items.append(Datum(str(images / file), label, classname=" ".join([year, *words])))
    return items
