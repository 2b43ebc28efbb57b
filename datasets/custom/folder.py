"""Custom images, without code: DATASET.NAME folder, DATASET.ROOT the folder or table. See docs/datasets.md."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import write_json
from datasets.custom.options import OPTIONS_FILES, Options, read_options, walk_class_folders
from datasets.custom.parquet import find_parquet, read_parquet
from datasets.custom.tables import SPLITS, TABLE_SUFFIXES, Row, read_table
from datasets.few_shot import cache_folder, draw_shots, find_images, subsample_classes
from datasets.prepare.splits import split_trainval

__all__ = ["Folder", "automatic_split", "class_numbers"]

logger = logging.getLogger(__name__)

# Tables that are used without being named.
_TABLE_NAMES = ("split", "items", "labels", "metadata")


@DATASET_REGISTRY.register(name="folder")
class Folder(DatasetBase):
    """Class folders, a table (CSV, TSV, JSON, JSON lines) or parquet files, with an optional dataset.yaml.

    Without a split one is made: seeded, the same for every run, recorded in the cache folder, and named in the
    fingerprint (`split_origin`).

    Raises:
        FileNotFoundError: DATASET.ROOT is not there, or images are missing.
        ValueError: nothing to read, or something that is not usable; the message says what and where.
        ImportError: parquet files without pyarrow.
    """

    def __init__(self, cfg: Any):
        root, options = find_options(cfg.DATASET.ROOT)
        cache = cache_folder(cfg) / "folder"
        rows, images, known_names = read_rows(root, options, cache)
        check_duplicates(rows)
        self.items_root = str(images)
        self.cache_name = f"folder/{root.stem}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
        self.template = options.template
        numbers = class_numbers(rows, str(root))
        names = class_names(rows, numbers, options, known_names, str(root))
        train, val, test = self.split_rows(rows, numbers, names, options, cache)
        find_images((train, val, test), f'"{root}"')
        train, val = draw_shots(cfg, self, train, val)
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def split_rows(
        self, rows: list[Row], numbers: dict[int | str, int], names: list[str], options: Options, cache: Path
    ) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Items of the splits that the rows name, or of an automatic split if they name none, or train alone."""
        given = {row.split for row in rows}
        if None in given and len(given) > 1:
            first = next(row.where for row in rows if row.split is None)
            raise ValueError(f"{first} names no split, but other images do; give all of them one, or none")
        places = {_path(self.items_root, row): row for row in rows}
        parts: dict[str | None, list[Datum]] = {split: [] for split in (*SPLITS, None)}
        for path, row in places.items():
            number = numbers[row.label]
            parts[row.split].append(Datum(path, number, classname=names[number]))
        if given <= {None, "train"}:
            splits = automatic_split(parts[None] or parts["train"], options)
            shares = f"train {options.train:g}, val {options.val:g}"
            self.split_origin = f"automatic, seed {options.seed}, {shares}"
            record_split(splits, places, options, Path(self.items_root), cache)
            return splits
        train, val, test = (parts[split] for split in SPLITS)
        if not train and given == {"test"}:
            logger.warning('"%s" has test images only: they also give the classes; do not train on it', self.items_root)
            self.test_only = True
            return test, [], test
        if not train:
            raise ValueError(f'"{self.items_root}" has no training images, only {", ".join(sorted(map(str, given)))}')
        if not test:
            logger.warning('"%s" has no test images: the validation images are the test', self.items_root)
            val, test = [], val
        if not val and options.cut_val is not None and options.cut_val > 0:
            train, val = split_trainval(train, options.cut_val, random.Random(options.seed))
            self.split_origin = f"validation {options.cut_val:g} of training, seed {options.seed}"
        _check_trained(train, test + val)
        return train, val, test


def find_options(root: str) -> tuple[Path, Options]:
    """Images and options that DATASET.ROOT names: a folder with its dataset.yaml, or that yaml file itself.

    Returns:
        A folder or a table or parquet file, and the options.
    """
    if not root:
        raise FileNotFoundError(
            "DATASET.ROOT is not set; for DATASET.NAME folder it is your folder of images or your table. "
            "Set it with --root PATH or DATASET.ROOT PATH."
        )
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.exists():
        raise FileNotFoundError(f'there is no "{path}"; for DATASET.NAME folder DATASET.ROOT is your folder or table')
    if path.suffix in (".yaml", ".yml"):
        return path.parent, read_options(path)
    folder = path if path.is_dir() else path.parent
    for name in OPTIONS_FILES:
        if (folder / name).is_file():
            return path, read_options(folder / name)
    return path, Options()


def read_rows(root: Path, options: Options, cache: Path) -> tuple[list[Row], Path, list[str] | None]:
    """All rows, the folder that their paths are below, and class names by number if the files have them.

    In this order: what `items` names, the file itself, a table of a usual name, parquet files, class folders.
    """
    folder = root if root.is_dir() else root.parent
    images = folder if options.images is None else Path(os.path.abspath(folder / os.path.expanduser(options.images)))
    if not images.is_dir():
        raise FileNotFoundError(f'there is no folder "{images}", named as `images` in dataset.yaml')
    if root.is_file():
        files = [root]
    elif options.items is not None:
        files = sorted(folder.glob(options.items))
        if not files:
            raise FileNotFoundError(f'"{folder}" has no {options.items}, named as `items` in dataset.yaml')
    else:
        files = [folder / (name + suffix) for name in _TABLE_NAMES for suffix in TABLE_SUFFIXES]
        files = [file for file in files if file.is_file()]
        if len(files) > 1:
            found = ", ".join(file.name for file in files)
            raise ValueError(f'"{folder}" has {found}; `items: FILE` in dataset.yaml says which to use')
        files = files or find_parquet(folder)
    if not files:
        return walk_class_folders(images), images, None
    if all(file.suffix == ".parquet" for file in files):
        return read_parquet(files, folder, cache, options.columns)
    if len(files) > 1 or files[0].suffix not in TABLE_SUFFIXES:
        found = ", ".join(file.name for file in files[:5])
        raise ValueError(f"cannot read {found}: expected one of {', '.join(TABLE_SUFFIXES)}, or parquet files")
    return read_table(files[0], images, options.columns), images, None


def check_duplicates(rows: Sequence[Row]) -> None:
    """ValueError if an image stands there twice: it would be in two splits or count twice."""
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.path, row)
        if first is not row:
            same = (first.label, first.split) == (row.label, row.split)
            what = "" if same else f" with another label or split ({first.label!r}, {row.label!r})"
            raise ValueError(f"{row.where} names {row.path} again{what}; it stood in {first.where}")


def class_numbers(rows: Sequence[Row], source: str) -> dict[int | str, int]:
    """Label -> class number: numbers stay, texts are ranked by code point (texts of digits by their value).

    Raises:
        ValueError: numbers do not run from 0 without a gap, or numbers and texts are mixed.
    """
    labels = {row.label for row in rows}
    texts = {label for label in labels if isinstance(label, str)}
    if texts and texts != labels:
        raise ValueError(f"{source} mixes class numbers and texts as labels, such as {min(texts)!r}")
    if not texts:
        absent = [number for number in range(len(labels)) if number not in labels]
        if absent:
            raise ValueError(
                f"{source}: the numbers of {len(labels)} classes must be 0 to {len(labels) - 1}, but no image has "
                f"{', '.join(map(str, absent[:10]))}; renumber them, or use names as labels"
            )
        return {label: int(label) for label in labels}
    digits = all(text.isdecimal() for text in texts)
    ranked = sorted(texts, key=lambda text: (int(text), text)) if digits else sorted(texts)
    return {text: rank for rank, text in enumerate(ranked)}


def class_names(
    rows: Sequence[Row], numbers: dict[int | str, int], options: Options, known: list[str] | None, source: str
) -> list[str]:
    """Class names in the order of their numbers: those of dataset.yaml, else of the table or files, else the labels.

    Raises:
        ValueError: a name for a class that is not there, too few or too many, none, or two names for one class.
    """
    names: dict[int, str] = {}
    if known is not None and all(isinstance(label, int) for label in numbers):
        names = {number: known[number] for number in numbers.values() if number < len(known)}
    for row in rows:
        if row.classname is not None:
            name = names.setdefault(numbers[row.label], row.classname)
            if name != row.classname:
                raise ValueError(f"{row.where} gives class {row.label!r} the name {row.classname!r}, before {name!r}")
    labels = {number: str(label) for label, number in numbers.items()}
    if isinstance(options.classnames, list):
        if len(options.classnames) != len(labels):
            raise ValueError(
                f"dataset.yaml has {len(options.classnames)} class names, but {source} has {len(labels)} classes"
            )
        names = dict(enumerate(options.classnames))
    else:
        place = {label: number for number, label in labels.items()}
        unknown = [label for label in options.classnames if label not in place]
        if unknown:
            raise ValueError(
                f"dataset.yaml names the class(es) {', '.join(map(repr, unknown[:5]))}, but {source} has "
                f"{', '.join(map(repr, list(place)[:5]))}{' and more' if len(place) > 5 else ''}"
            )
        names |= {place[label]: name for label, name in options.classnames.items()}
    nameless = [labels[number] for number in sorted(labels) if number not in names and labels[number].isdecimal()]
    if nameless:
        logger.warning(
            "%s: classes such as %s have no name but a number; `classnames` in dataset.yaml names them",
            *(source, nameless[0]),
        )
    found = [names.get(number, labels[number]) for number in sorted(labels)]
    blank = [labels[number] for number in sorted(labels) if not found[number].strip("_ \t\n")]
    if blank:
        raise ValueError(
            f"{source}: the class(es) {', '.join(map(repr, blank[:5]))} have a name without a letter; `classnames` in "
            "dataset.yaml names them"
        )
    return found


def automatic_split(items: Sequence[Datum], options: Options) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """Each class shuffled and cut into training, validation and test, with at least one image in each.

    Raises:
        ValueError: a class has too few images.
    """
    rng = random.Random(options.seed)
    groups: dict[int, list[Datum]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    train: list[Datum] = []
    val: list[Datum] = []
    test: list[Datum] = []
    for number in sorted(groups):
        group = groups[number]
        least = 3 if options.val > 0 else 2
        if len(group) < least:
            raise ValueError(
                f"class {group[0].classname!r} has {len(group)} image(s), but a split into train, val and test needs "
                f"{least}; add images, or name the split of each image yourself"
            )
        rng.shuffle(group)
        n_val = max(1, round(len(group) * options.val)) if options.val > 0 else 0
        n_train = min(max(1, round(len(group) * options.train)), len(group) - n_val - 1)
        train += group[:n_train]
        val += group[n_train : n_train + n_val]
        test += group[n_train + n_val :]
    return train, val, test


def record_split(
    splits: tuple[list[Datum], list[Datum], list[Datum]],
    rows: dict[str, Row],
    options: Options,
    root: Path,
    cache: Path,
) -> None:
    """Write an automatic split, with the original labels, to a file that can be used as split.json."""
    content = {split: [_entry(rows[item.impath]) for item in items] for split, items in zip(SPLITS, splits)}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    path = cache / f"{root.name}-{digest}-split.json"
    sizes = ", ".join(f"{len(items)} {split}" for split, items in zip(SPLITS, splits))
    from dassl.utils.distributed import is_main_process  # imports torch

    if not path.is_file() and is_main_process():
        try:
            write_json(content, path)
        except OSError as err:
            logger.warning("The automatic split is not recorded: %s. DATASET.CACHE_DIR chooses another folder", err)
            return
    logger.info(
        "No split is given: %s by seed %d, recorded in %s. A copy of it as split.json beside the images keeps it "
        "when images are added",
        *(sizes, options.seed, path),
    )


def _entry(row: Row) -> list[Any]:
    return [row.path, row.label] if row.classname is None else [row.path, row.label, row.classname]


def _check_trained(train: Sequence[Datum], others: Sequence[Datum]) -> None:
    known = {item.label for item in train}
    missing = sorted({item.classname for item in others if item.label not in known})
    if missing:
        raise ValueError(f"no training images for {len(missing)} class(es) of val or test: {', '.join(missing[:5])}")


def _path(root: str, row: Row) -> str:
    return os.path.join(root, *row.path.split("/"))
