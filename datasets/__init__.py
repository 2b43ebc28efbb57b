"""Readers of data sets. Importing this package registers them under their class names; DATASET.NAME picks one."""

from datasets import (  # noqa: F401 - importing registers
    caltech101,
    cifar,
    dtd,
    eurosat,
    fgvc_aircraft,
    food101,
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenetv2,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    ucf101,
)
from datasets.custom import folder  # noqa: F401
from datasets.embedded import digits, emoji  # noqa: F401
from datasets.image_text import artwork, pairs, retrieval  # noqa: F401
