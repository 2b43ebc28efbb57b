"""Data sets of dense tasks, and their loaders.

A data set says where the files of its splits are; a task reads those it needs. Items of every split are `Datum`s whose
label is 0, so that fingerprints and counts are as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from dassl.data.datasets import Datum
from dassl.data.loader import SeededLoader, pins_memory
from dassl.data.samplers import SeededSampler, SequentialSampler
from dassl.data.seeding import loader_seed
from dassl.utils import distributed

SPLITS = ("train", "val", "test")


class Split(NamedTuple):
    """Files of one split; None where the data set has none of a kind.

    Attributes:
        images: folder of the pictures.
        masks: folder of PNG label maps with the pictures' stems, in ADE20K's coding: 0 nothing, 1 + c class c.
        instances: JSON of COCO, with boxes and masks.
        captions, conversations: JSON of LLaVA: of its first and second stage.
        questions, answers: JSON lines of LLaVA-Bench.
    """

    images: Path
    masks: Path | None = None
    instances: Path | None = None
    captions: Path | None = None
    conversations: Path | None = None
    questions: Path | None = None
    answers: Path | None = None


class Pictures(Protocol):
    """Items of a split as a torch data set, `items` saying which pictures they are of."""

    items: list[Datum]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class DenseDataset:
    """Base of the data sets; a subclass is registered in DATASET_REGISTRY and built from the config.

    Args:
        classnames: in the order of their numbers.
        splits: by name, some of SPLITS.
        root: folder that paths are relative to in fingerprints.
    """

    template = "a photo of a {}."
    long_names = test_only = False
    split_origin = ""
    train_u = None

    def __init__(self, classnames: Sequence[str], splits: dict[str, Split], root: Path) -> None:
        self.classnames, self.splits, self.items_root = list(classnames), splits, str(root)
        self.lab2cname = dict(enumerate(self.classnames))
        self.num_classes = len(self.classnames)
        self.items: dict[str, list[Datum]] = {}  # by split, once a task has read it

    @property
    def train_x(self) -> list[Datum]:
        """Items to train on.

        Raises:
            ValueError: no dense task has read the data set: it is used as one of classes.
        """
        if not self.items:
            raise ValueError(
                f"{type(self).__name__} has masks, boxes or questions, not classes of whole pictures: use it with "
                "--trainer UperNet, ZeroshotSegmentation, CascadeMaskRCNN or LLaVA"
            )
        return self.items.get("train", [])

    @property
    def val(self) -> list[Datum] | None:
        """Items to choose by."""
        return self.items.get("val")

    @property
    def test(self) -> list[Datum] | None:
        """Items to measure on."""
        return self.items.get("test")

    def file(self, split: str, kind: str) -> Path:
        """The file or folder of a split, `kind` a field of Split.

        Raises:
            ValueError: the data set has none of the kind.
            FileNotFoundError: it is not there.
        """
        path = getattr(self.splits[split], kind)
        if path is None:
            raise ValueError(f"{type(self).__name__} has no {kind} of its {split} split, which this task needs")
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: the {kind} of the {split} split of {type(self).__name__}")
        return path


class Passes(SequentialSampler):
    """`length` indices in random order: whole passes over the items, each a new permutation, and the rest of one."""

    def __init__(self, items: Sized, length: int) -> None:
        super().__init__(items)
        self.length = length

    def order(self, seed: int) -> list[int]:
        """Permutations of one generator seeded with `seed`."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self.data_source)
        passes = -(-self.length // count)
        drawn = [torch.randperm(count, generator=generator) for _ in range(passes)]
        return torch.cat(drawn)[: self.length].tolist()

    def __len__(self) -> int:
        return self.length


class DenseData:
    """The loaders of a task, in the place of a DataManager.

    Args:
        cfg: the config.
        dataset: what its files are.
        read: (split, whether to train) -> its pictures.
        collate: items -> batch.
        sampler: (pictures to train on, number of items of an epoch in all processes) -> their order.
        steps: batches of an epoch; 0 for one pass over the pictures.
    """

    tfm_train = tfm_test = tfm_eval = None

    def __init__(
        self,
        cfg: Any,
        dataset: DenseDataset,
        read: Callable[[str, bool], Pictures],
        collate: Callable[[list[Any]], Any],
        sampler: Callable[[Any, int], SeededSampler] = Passes,
        steps: int = 0,
    ) -> None:
        self.dataset, self.num_source_domains = dataset, 0
        self.num_classes, self.lab2cname = dataset.num_classes, dataset.lab2cname
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
        common = {"num_workers": cfg.DATALOADER.NUM_WORKERS, "pin_memory": pins_memory(cfg), "collate": collate}
        common["persistent_workers"] = cfg.DATALOADER.PERSISTENT_WORKERS
        for split in SPLITS:
            if split not in dataset.splits:
                continue
            train = split == "train"
            pictures: Any = read(split, train)
            if not len(pictures):
                raise ValueError(f"the {split} split of {type(dataset).__name__} has no pictures for this task")
            dataset.items[split] = pictures.items
            if train:
                size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
                share = size * distributed.get_world_size()
                length = steps * share or len(pictures)
                generator = torch.Generator().manual_seed(loader_seed(cfg.SEED))
                self.train_loader_x = SeededLoader(
                    pictures, sampler(pictures, length), size, generator, drop_last=length >= share, **common
                )
            else:
                order = SequentialSampler(pictures)
                loader = SeededLoader(pictures, order, cfg.DATALOADER.TEST.BATCH_SIZE, **common)
                setattr(self, f"{split}_loader", loader)
