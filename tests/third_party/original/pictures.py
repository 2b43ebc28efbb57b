"""A data set in the original's style: DATASET.ROOT/items.json lists [file, label, class name] of train and test."""

import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import read_json


@DATASET_REGISTRY.register()
class Pictures(DatasetBase):
    def __init__(self, cfg):
        root = cfg.DATASET.ROOT
        items = read_json(os.path.join(root, "items.json"))
        train, test = (
            [Datum(os.path.join(root, file), label, 0, name) for file, label, name in items[split]]
            for split in ("train", "test")
        )
        super().__init__(train_x=train, test=test)
