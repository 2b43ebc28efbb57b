"""ImageNet-R: art, cartoons, toys and other renditions."""

from dassl.data.datasets import DATASET_REGISTRY
from datasets.standard import TestFolders


@DATASET_REGISTRY.register()
class ImageNetR(TestFolders):
    """30,000 renditions of 200 of ImageNet's classes, numbered 0 to 199: a problem of 200 classes."""
