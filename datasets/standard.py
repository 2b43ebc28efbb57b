"""Base of the readers of the standard data sets: catalog entries, folder listings, splits on request.

Folders that CoOp and its followers use work as they are and are only read. A split file that is missing is an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.datasets.base_dataset import sample_per_class
from dassl.data.fingerprint import classnames_hash, relative_paths
from dassl.utils import listdir_nohidden
from datasets.few_shot import MAX_VAL_SHOTS, FewShotDataset, read_split, save_split
from datasets.prepare.catalog import CATALOG, DatasetInfo, prepare_command
from datasets.prepare.splits import Splits, class_folders, read_lines

__all__ = [
    "SPLIT_SEED",
    "KnownDataset",
    "TestFolders",
    "TrainTestFolders",
    "differences",
    "make_split",
    "read_class_folders",
    "read_classnames",
]

logger = logging.getLogger(__name__)

SPLIT_SEED = 1  # of splits made on request


class KnownDataset(FewShotDataset):
    """A data set of the catalogue: a subclass of that name takes its folders, split file and template from there.

    `split_origin` is "" for the published data, "self-made" for a split made on request, and "unrecognised" where
    counts, class names or picks are not the published ones (a warning says which).
    """

    info: DatasetInfo
    config_name: str

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if cls.__name__ in CATALOG:
            cls.info = info = CATALOG[cls.__name__]
            cls.dataset_dir, cls.image_dir, cls.split_file = info.folder, info.images, info.split_file
            cls.template, cls.config_name = info.template, info.config

    def __init__(self, cfg: Any):
        self.source = f"{prepare_command(self.info.name, cfg.DATASET.ROOT)} (from {self.info.home})"
        super().__init__(cfg)

    def read(self, folder: Path) -> Splits:
        splits = self.read_items(folder)
        if not self.split_origin:
            found = differences(self.info, *splits, root=self.items_root)
            if found:
                self.split_origin = "unrecognised"
                logger.warning(
                    '%s in "%s" is not the published data, so results cannot be compared with published ones: %s',
                    *(self.info.name, folder, "; ".join(found)),
                )
        return splits

    def read_items(self, folder: Path) -> Splits:
        """Items of the split file, of the one made on request if the published one is not there."""
        made = folder / self.info.made_split
        if not (folder / self.split_file).is_file() and made.is_file():
            self.split_origin = "self-made"
            logger.warning(
                "%s uses a split made on this machine (%s), not the published one: results cannot be compared",
                *(self.info.name, made),
            )
            return read_split(made, self.items_root)
        return super().read(folder)

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        """Items of a split made by the original procedure.

        Args:
            folder: the data set's folder.
            rng: random.Random, or the module `random` for its global generator.

        Raises:
            ValueError: the data set has official lists, so there is nothing to make.
        """
        raise ValueError(f"{cls.__name__} comes with its lists, there is no split to make")


class TrainTestFolders(KnownDataset):
    """Images in class folders below `train_dir` and `test_dir`; the test images are also the validation images.

    Labels are the ranks of the folder names. Few-shot picks are drawn from the training images alone. Listings are
    sorted, so that the picks do not depend on the file system.
    """

    train_dir = "train"
    test_dir = "test"
    names_files: Sequence[str] = ("classnames.txt",)
    sample_val = False
    listed = True

    def read_items(self, folder: Path) -> Splits:
        names = self.class_names(folder)
        images = folder / self.image_dir
        parts = []
        for part in (self.train_dir, self.test_dir):
            if not (images / part).is_dir():
                raise FileNotFoundError(
                    f'{self.info.name} has no folder "{images / part}". Where to get it: {self.source}'
                )
            parts.append(read_class_folders(images / part, names))
        train, test = parts
        found, expected = ({Path(item.impath).parent.name for item in items} for items in (test, train))
        if found != expected:
            some = ", ".join(sorted(found ^ expected)[:5])
            raise ValueError(
                f'"{images / self.train_dir}" and "{images / self.test_dir}" must have the same class folders, but '
                f"{len(found ^ expected)} are in one of them only: {some}"
            )
        return train, test, test

    def class_names(self, folder: Path) -> dict[str, str] | None:
        """Folder name -> class name; None if the folders are named like the classes."""
        return find_classnames(folder, self.names_files, self.source)


class TestFolders(KnownDataset):
    """Test images in class folders, for the classes of another data set's training.

    The same list serves as training items, for the class names. NUM_SHOTS and SUBSAMPLE_CLASSES change nothing.
    """

    __test__ = False  # no test class of pytest
    listed = True

    def read_items(self, folder: Path) -> Splits:
        images = folder / self.image_dir
        if not images.is_dir():
            raise FileNotFoundError(f'{self.info.name} has no folder "{images}". Where to get it: {self.source}')
        names = find_classnames(folder, ("classnames.txt", "../imagenet/classnames.txt"), self.source)
        items = self.list_items(images, names)
        return items, [], items

    def list_items(self, images: Path, names: dict[str, str]) -> list[Datum]:
        """Items below the folder `images`; labels are the ranks of the folder names."""
        return read_class_folders(images, names)

    def select(self, cfg: Any, train: list[Datum], val: list[Datum], test: list[Datum]) -> list[list[Datum]]:
        return [train, val, test]


def differences(
    info: DatasetInfo, train: Sequence[Datum], val: Sequence[Datum], test: Sequence[Datum], root: str
) -> list[str]:
    """Differences of the whole data (before picks and halves) from the catalog; empty if there are none.

    Counts, class names, and the 16-shot picks of seed 1, which change with any training or validation item. `root` is
    the folder that paths are relative to.
    """
    found = []
    parts = (("training", train, info.train), ("validation", val, info.val), ("test", test, info.test))
    for name, items, known in parts:
        if known is not None and len(items) != known:
            found.append(f"{len(items)} {name} images instead of {known}")
    names = dict(sorted({item.label: item.classname for item in train}.items()))
    if len(names) != info.classes:
        found.append(f"{len(names)} classes instead of {info.classes}")
    elif info.names_sha256 and classnames_hash(list(names.values())) != info.names_sha256:
        found.append("other class names")
    if info.picks_sha256 and not found and picks_hash(train, val, root) != info.picks_sha256:
        found.append("other items, or another order of them, for training and validation")
    return found


def picks_hash(train: Sequence[Datum], val: Sequence[Datum], root: str, shots: int = 16, seed: int = 1) -> str:
    """sha256 of the picks of a seed: training paths, a line "--", validation paths, joined by newlines."""
    rng = random.Random(seed)
    picks = [sample_per_class(items, k, rng) for items, k in ((train, shots), (val, min(shots, MAX_VAL_SHOTS)))]
    texts = ["\n".join(path for path, _ in relative_paths(items, root)) for items in picks]
    return hashlib.sha256("\n--\n".join(texts).encode()).hexdigest()


def read_class_folders(path: Path, names: dict[str, str] | None = None) -> list[Datum]:
    """Items of all files in the class folders of `path`, sorted; hidden files and stray files beside them are left out.

    Args:
        names: folder name -> class name; None takes the folder names.

    Raises:
        FileNotFoundError: no class folders. ValueError: one has no name, or no images.
    """
    items: list[Datum] = []
    for label, folder in enumerate(class_folders(path)):
        if names is not None and folder not in names:
            raise ValueError(f'"{path / folder}" is not a class folder: the file of class names has no {folder!r}')
        items += list_folder(path / folder, label, folder if names is None else names[folder])
    return items


def list_folder(path: Path, label: int, classname: str) -> list[Datum]:
    """Items of the files in one class folder, sorted; ValueError if there are none."""
    files = listdir_nohidden(path, sort=True)
    if not files:
        raise ValueError(f'class folder "{path}" is empty: the download is not complete')
    return [Datum(os.path.join(path, file), label, classname=classname) for file in files]


def read_classnames(text_file: str | os.PathLike[str]) -> dict[str, str]:
    """Class names by folder, in the order of the file, from lines "<folder> <name, which may have spaces>".

    Raises:
        FileNotFoundError: there is no such file. ValueError: a line has no name, or a folder stands there twice.
    """
    names: dict[str, str] = {}
    for line in read_lines(text_file):
        folder, _, name = line.strip().partition(" ")
        if not name or folder in names:
            reason = "stands there twice" if folder in names else "has no class name"
            raise ValueError(f'"{text_file}": {folder!r} {reason}; expected lines "<folder> <class name>"')
        names[folder] = name
    return names


def find_classnames(folder: Path, files: Sequence[str], source: str) -> dict[str, str]:
    """Class names of the first of `files` that is below `folder`; FileNotFoundError if none is."""
    for file in files:
        if (folder / file).is_file():
            return read_classnames(folder / file)
    raise FileNotFoundError(f'there is no file of class names "{folder / files[0]}". Where to get it: {source}')


def make_split(name: str, root: str | os.PathLike[str], seed: int = SPLIT_SEED) -> Path:
    """Make a split by the original procedure and write it into the data set's folder, under a separate name.

    The reader uses it if the published split file is not there, with a warning and a mark in the fingerprint.

    Returns:
        The file, info.made_split in the data set's folder.

    Raises:
        ValueError: the data set needs no split, or annotations are damaged. FileNotFoundError: something is missing.
        OSError: the folder cannot be written.
    """
    reader = DATASET_REGISTRY.get(name)
    folder = Path(os.path.abspath(os.path.expanduser(root))) / reader.dataset_dir
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder "{folder}". Where to get it: {prepare_command(name, str(root))}')
    train, val, test = reader.make_items(folder, random.Random(seed))
    DatasetBase.get_lab2cname([*train, *val, *test])  # each label has one name
    path = folder / reader.info.made_split
    save_split(train, val, test, path, folder / reader.image_dir)
    return path
