"""ImageNet-A: photos that classifiers get wrong."""

from dassl.data.datasets import DATASET_REGISTRY
from datasets.standard import TestFolders


@DATASET_REGISTRY.register()
class ImageNetA(TestFolders):
    """7,500 photos of 200 of ImageNet's classes, numbered 0 to 199: a problem of 200 classes."""
