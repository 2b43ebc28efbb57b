"""CIFAR-10 and CIFAR-100 as image files in class folders."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from datasets.standard import TrainTestFolders, find_classnames


class CIFAR(TrainTestFolders):
    """Classes in the order of their folder names, named by a file of class names or else like the folders.

    Validation images are the test images.
    """

    def class_names(self, folder: Path) -> dict[str, str] | None:
        if any((folder / file).is_file() for file in self.names_files):
            return find_classnames(folder, self.names_files, self.source)
        return None


@DATASET_REGISTRY.register()
class CIFAR10(CIFAR):
    """Ten objects, 32 x 32 pixels."""


@DATASET_REGISTRY.register()
@DATASET_REGISTRY.register(name="MYCIFAR100")  # LAMM's name for it
class CIFAR100(CIFAR):
    """100 objects, 32 x 32 pixels."""

    names_files = ("classnames_for_cifar100.txt", "classnames.txt")
