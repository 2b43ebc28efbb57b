"""ImageNet-Sketch: drawings of ImageNet's classes."""

from dassl.data.datasets import DATASET_REGISTRY
from datasets.standard import TestFolders


@DATASET_REGISTRY.register()
class ImageNetSketch(TestFolders):
    """50,889 sketches of ImageNet's 1,000 classes."""
