"""Few-shot protocol of the CoOp family: split files, seeded picks, base and new classes, caches of picks.

Nothing is written into the folder of the data.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from dassl.data.datasets.base_dataset import check_images
from dassl.data.fingerprint import relative_paths, split_hash
from dassl.utils import read_json, user_cache, write_json

__all__ = [
    "MAX_VAL_SHOTS",
    "FewShotDataset",
    "cache_folder",
    "data_root",
    "draw_shots",
    "find_images",
    "read_split",
    "released_picks",
    "save_split",
    "subsample_classes",
]

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4
PICKS_2SFS = "https://drive.google.com/drive/folders/1uZN-Mjqz9U3Kjn36lj8eUhvJskBllT6j"
CACHE_FORMAT = 1
_SPLITS = ("train", "val", "test")


class FewShotDataset(DatasetBase):
    """A data set with a split file; a subclass gives the names and is registered.

    cfg.DATASET.NUM_SHOTS >= 1 draws that many training items per class and min(NUM_SHOTS, 4) validation items;
    SUBSAMPLE_CLASSES then keeps the base or the new half of the classes.

    Class attributes:
        dataset_dir: folder below DATASET.ROOT.
        image_dir: folder of the images below that; "" for the data set's folder itself.
        split_file: name of the split file in the data set's folder.
        source: where images and split file come from; shown when they are missing.
        sample_val: False keeps the validation items whole.
        listed: True if the items come from listings of folders, so that nobody looks for each file once more.

    Raises:
        FileNotFoundError: the data root, the data set's folder, the split file or images are missing.
        ValueError: the split file is damaged, or SUBSAMPLE_CLASSES is none of all, base, new.
    """

    image_dir: str = ""
    split_file: str = ""
    source: str = ""
    sample_val: bool = True
    listed: bool = False

    def __init__(self, cfg: Any):
        folder = data_root(cfg, self.dataset_dir, self.source)
        self.items_root = str(folder / self.image_dir)
        train, val, test = self.read(folder)
        if not self.listed:
            find_images((train, val, test), type(self).__name__, self.source)
        train, val, test = self.select(cfg, train, val, test)
        super().__init__(train_x=train, val=val, test=test)

    def select(self, cfg: Any, train: list[Datum], val: list[Datum], test: list[Datum]) -> list[list[Datum]]:
        """Few-shot picks, then the wanted half of the classes."""
        train, val = draw_shots(cfg, self, train, val, self.sample_val)
        return subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)

    def read(self, folder: Path) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Training, validation and test items; the split file unless a subclass has another source."""
        path = folder / self.split_file
        if not path.is_file():
            raise FileNotFoundError(
                f'{type(self).__name__} has no split file "{path}". A split made up here would give other results than '
                f"those of everybody else, so none is made. {_advice(self.source)}"
            )
        return read_split(path, self.items_root)


def find_images(splits: Iterable[Iterable[Datum]], name: str, source: str = "") -> None:
    """Check that the image of every item is a file.

    Raises:
        FileNotFoundError: some are not; the message has their number, the first few, and where to get them.
    """
    try:
        check_images(item.impath for items in splits for item in items)
    except FileNotFoundError as err:
        raise FileNotFoundError(f"{name}: {err}\n{_advice(source)}") from None


def data_root(cfg: Any, dataset_dir: str, source: str = "") -> Path:
    """Absolute path of the folder `dataset_dir` below DATASET.ROOT.

    Raises:
        FileNotFoundError: DATASET.ROOT is not set or not there, or has no such folder; the message says what was looked
            for and how the root is set.
    """
    how = "Set it with --root DIR or DATASET.ROOT DIR."
    if not cfg.DATASET.ROOT:
        raise FileNotFoundError(
            f'DATASET.ROOT is not set; it must be the folder that holds "{dataset_dir}". {how} {_advice(source)}'
        )
    root = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)))
    if not root.is_dir():
        raise FileNotFoundError(
            f'the data root "{root}" is not there; it must hold the folder "{dataset_dir}". {how} {_advice(source)}'
        )
    if not (root / dataset_dir).is_dir():
        raise FileNotFoundError(
            f'there is no folder "{dataset_dir}" in the data root "{root}". {how} {_advice(source)}'
        )
    return root / dataset_dir


def read_split(
    filepath: str | os.PathLike[str], path_prefix: str | os.PathLike[str]
) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """Items of a split file: {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    Args:
        filepath: the JSON file; its paths are relative and use "/".
        path_prefix: the folder that the paths are relative to.

    Returns:
        Lists of training, validation and test items, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form; the message names the file and the entry.
    """
    content = read_json(filepath, unique=True)
    if not isinstance(content, dict) or set(content) != set(_SPLITS):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'"{filepath}" is not a split file: expected the keys train, val, test, found {found}')
    logger.info("Reading split from %s", filepath)
    train, val, test = (_read_items(content[split], path_prefix, f'{split} of "{filepath}"') for split in _SPLITS)
    return train, val, test


def save_split(
    train: Sequence[Datum],
    val: Sequence[Datum],
    test: Sequence[Datum],
    filepath: str | os.PathLike[str],
    path_prefix: str | os.PathLike[str],
) -> None:
    """Write a split file in the form that `read_split` reads; paths become relative to `path_prefix`."""
    splits = zip(_SPLITS, (train, val, test))
    write_json({split: _plain_items(items, path_prefix) for split, items in splits}, filepath)
    logger.info("Saved split to %s", filepath)


def class_sets(subsample: str) -> tuple[int, int, int]:
    """First set, last set (from 1) and number of sets that DATASET.SUBSAMPLE_CLASSES names; base is 1/2, new 2/2.

    Raises:
        ValueError: no such value.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", {"base": "1/2", "new": "2/2"}.get(subsample, subsample))
    if found:
        first, last, sets = int(found[1]), int(found[2] or found[1]), int(found[3])
        if 1 <= first <= last <= sets:
            return first, last, sets
    raise ValueError(
        f"DATASET.SUBSAMPLE_CLASSES is {subsample!r}, expected all, base, new, or sets of the classes such as 2/3 "
        "(the second of three) or 1-2/3 (the first two)"
    )


def subsample_classes(*args: list[Datum], subsample: str = "all") -> list[list[Datum]]:
    """Keep the items of some of the classes and number these from 0.

    The classes are the distinct labels of the first list in ascending order; base are the first half (the larger one if
    the number is odd), new are the rest. "2/3" is the second of three sets of as equal size as possible, "1-2/3"
    the first two of them together. Order and class names stay; domains become 0.

    Args:
        args: lists of items, filtered and renumbered alike.
        subsample: all (the lists as they are), base, new, or sets as K/N or K-L/N.

    Raises:
        ValueError: another value of `subsample`, or fewer classes than sets.
    """
    if subsample == "all":
        return list(args)
    labels = sorted({item.label for item in args[0]})
    first, last, sets = class_sets(subsample)
    if sets > max(2, len(labels)):
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES {subsample!r} asks for {sets} sets of {len(labels)} classes")
    logger.info("SUBSAMPLE %s CLASSES!", subsample.upper())
    start, stop = (-(-len(labels) * k // sets) for k in (first - 1, last))
    selected = labels[start:stop]
    number = {label: rank for rank, label in enumerate(selected)}
    return [
        [
            Datum(impath=item.impath, label=number[item.label], classname=item.classname)
            for item in items
            if item.label in number
        ]
        for items in args
    ]


def draw_shots(
    cfg: Any, dataset: DatasetBase, train: list[Datum], val: list[Datum], sample_val: bool = True
) -> tuple[list[Datum], list[Datum]]:
    """The few-shot picks of a data set: NUM_SHOTS per class from `train`, then min(NUM_SHOTS, 4) from `val`.

    The picks depend on cfg.SEED and the lists alone. They are what the global generator of Python would give right
    after random.seed(SEED). With a seed they are also kept as JSON in the cache folder, under the hash of the lists
    they were drawn from: picks of other lists are never used. Without a seed (SEED < 0) they come from the global
    generator.

    Args:
        dataset: gives its class name (or `cache_name`, where many data sets have one class) and `items_root`, which
            paths in the cache are relative to.
        sample_val: False leaves `val` whole.

    Returns:
        The picks; both lists as they are if NUM_SHOTS < 1.
    """
    shots, seed = cfg.DATASET.NUM_SHOTS, cfg.SEED
    if shots < 1:
        return train, val
    if cfg.DATASET.PICKS == "2sfs":
        return released_picks(cfg, dataset, train, val, sample_val)

    def draw(rng: Any) -> tuple[list[Datum], list[Datum]]:
        picks = dataset.generate_fewshot_dataset(train, num_shots=shots, rng=rng)
        if not sample_val:
            return picks, val
        return picks, dataset.generate_fewshot_dataset(val, num_shots=min(shots, MAX_VAL_SHOTS), rng=rng)

    if seed < 0:
        return draw(random)
    root = dataset.items_root
    name = getattr(dataset, "cache_name", type(dataset).__name__)
    path = cache_folder(cfg) / name / f"shot_{shots}-seed_{seed}.json"
    key = {
        "format": CACHE_FORMAT,
        "train_hash": split_hash(train, root),
        "val_hash": split_hash(val, root) if sample_val else "",
    }
    cached = _read_cache(path, key, (train, val), root)
    if cached is not None:
        logger.info("Loading preprocessed few-shot data from %s", path)
        return cached[0], cached[1] if sample_val else val
    picks = draw(random.Random(seed))
    content = {**key, "train": _plain_items(picks[0], root)}
    content["val"] = _plain_items(picks[1], root) if sample_val else []
    _write_cache(path, content)
    return picks


def released_picks(
    cfg: Any, dataset: DatasetBase, train: list[Datum], val: list[Datum], sample_val: bool = True
) -> tuple[list[Datum], list[Datum]]:
    """The few-shot lists that 2SFS (Farina et al., CVPR 2025) released, for NUM_SHOTS and SEED.

    They are files <data set's folder>/split_fewshot/shot_K-seed_S_{train,val}.jsonl with a line {"_impath", "_label",
    "_domain", "_classname"} for each image. Paths may begin with any folder: the end of a path decides.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is none, or its image is not in the official split with this label and class name.
    """
    name = f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}"
    folder = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), dataset.dataset_dir, "split_fewshot")
    picks = []
    for items, part in ((train, "train"), (val, "val")):
        if part == "val" and not sample_val:
            picks.append(val)
            continue
        path = folder / f"{name}_{part}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(
                f'DATASET.PICKS is 2sfs, but there is no "{path}": get jsonl_{cfg.DATASET.NUM_SHOTS}shot.tar from '
                f'{PICKS_2SFS} and unpack it in "{cfg.DATASET.ROOT}" (seeds 1, 2, 3; 1, 2, 4, 8, 16 shots)'
            )
        known = dict(relative_paths(items, dataset.items_root))
        picks.append([_released(line, known, path) for line in path.read_text(encoding="utf-8").splitlines() if line])
    return picks[0], picks[1]


def _released(line: str, known: Mapping[str, Datum], path: Path) -> Datum:
    """The item of a line of a released list."""
    try:
        row = json.loads(line)
        parts, label, name = PurePosixPath(row["_impath"]).parts, row["_label"], row["_classname"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'"{path}" has the line {line[:100]!r}, expected _impath, _label and _classname') from None
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    item = next((known[end] for end in ends if end in known), None)
    if item is None or (item.label, item.classname) != (label, name):
        raise ValueError(
            f'"{path}" lists {row["_impath"]!r} as {name!r} (label {label}), which the official split does not have'
        )
    return item


def cache_folder(cfg: Any) -> Path:
    """Folder of the few-shot picks: DATASET.CACHE_DIR, else align-prompt in the user's cache folder."""
    if cfg.DATASET.CACHE_DIR:
        return Path(os.path.abspath(os.path.expanduser(cfg.DATASET.CACHE_DIR)))
    return user_cache() / "few_shot"


def _read_cache(
    path: Path, key: dict[str, Any], sources: Sequence[list[Datum]], root: str
) -> tuple[list[Datum], list[Datum]] | None:
    """Picks kept at `path` if they were drawn from exactly these lists, else None."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if not isinstance(content, dict) or any(content.get(name) != value for name, value in key.items()):
            logger.info("The few-shot picks in %s are of other data and are drawn anew", path)
            return None
        picks = [_read_items(content.get(split), root, f'{split} of "{path}"') for split in ("train", "val")]
    except (OSError, ValueError) as err:
        logger.warning("The few-shot picks in %s cannot be read and are drawn anew: %s", path, err)
        return None
    known = [{(item.impath, item.label): item for item in items} for items in sources]
    for items, allowed in zip(picks, known):
        if any((item.impath, item.label) not in allowed for item in items):
            logger.warning("The few-shot picks in %s name items that the data does not have and are drawn anew", path)
            return None
    train, val = ([allowed[item.impath, item.label] for item in items] for items, allowed in zip(picks, known))
    return train, val


def _write_cache(path: Path, content: dict[str, Any]) -> None:
    """Keep picks; a cache that cannot be written costs nothing but the draw, so it is a warning."""
    from dassl.utils.distributed import is_main_process  # imports torch

    if not is_main_process():
        return
    try:
        write_json(content, path)
    except OSError as err:
        logger.warning("The few-shot picks are not kept: %s. DATASET.CACHE_DIR chooses another folder", err)
    else:
        logger.info("Saving preprocessed few-shot data to %s", path)


def _plain_items(items: Sequence[Datum], root: str | os.PathLike[str]) -> list[list[Any]]:
    return [[path, item.label, item.classname] for path, item in relative_paths(items, root)]


def _read_items(rows: Any, root: str | os.PathLike[str], where: str) -> list[Datum]:
    if not isinstance(rows, list):
        raise ValueError(f"{where} is {type(rows).__name__}, expected a list of [path, label, class name]")
    items = []
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[2], str):
            raise ValueError(f"entry {index} in {where} is {row!r}, expected [path, label, class name]")
        path, label, classname = row
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError(f"entry {index} in {where} has the path {path!r}, expected one below the image folder")
        number = int(label) if isinstance(label, str) and label.isdigit() else label
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"entry {index} in {where} has the label {label!r}, expected an integer of at least 0")
        items.append(Datum(impath=os.path.join(root, path), label=number, classname=classname))
    return items


def _advice(source: str) -> str:
    return f"Where to get it: {source}" if source else "See docs/datasets.md for where to get it."
