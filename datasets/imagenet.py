"""ImageNet (ILSVRC 2012)."""

from dassl.data.datasets import DATASET_REGISTRY
from datasets.standard import TrainTestFolders, read_classnames


@DATASET_REGISTRY.register()
class ImageNet(TrainTestFolders):
    """1,000 classes named by classnames.txt; validation and test are the 50,000 validation images.

    CoOp keeps its unsorted listing in preprocessed.pkl, which is not read here: listings are sorted, so few-shot picks
    are the same on every machine, and other than those that CoOp draws on a given file system.
    """

    test_dir = "val"

    # Readers written for CoOp find it here.
    read_classnames = staticmethod(read_classnames)
