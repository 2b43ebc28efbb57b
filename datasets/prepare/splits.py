"""Split procedures of the standard data sets, and the readers of their annotation files.

A split is made on request only (see standard.make_split): anybody who compares results uses the published split files.
The procedures are those of CoOp's readers, number for number: the same generator state gives the same lists and leaves
the same state. Listings are sorted here, so that the result does not depend on the file system.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from dassl.utils import listdir_nohidden

__all__ = ["SHARES", "class_folders", "read_lines", "read_mat", "split_class_folders", "split_groups", "split_trainval"]

Splits = tuple[list[Datum], list[Datum], list[Datum]]
SHARES = (0.5, 0.2)  # training and validation; the rest is test


def split_class_folders(
    image_dir: str | os.PathLike[str],
    p_trn: float = SHARES[0],
    p_val: float = SHARES[1],
    ignored: Sequence[str] = (),
    new_cnames: Mapping[str, str] | None = None,
    rng: Any = random,
) -> Splits:
    """Split the images of each class folder: shuffled, then cut into training, validation and test.

    Labels are the ranks of the folder names in the order of code points, without the ignored ones.

    Args:
        image_dir: folder of the class folders.
        p_trn, p_val: shares of a class for training and validation, rounded half to even; the rest is test.
        ignored: class folders to leave out.
        new_cnames: folder name -> class name, for folders that are not named like their class.
        rng: random.Random, or the module `random` for its global generator.

    Raises:
        FileNotFoundError: there is no such folder. ValueError: a class is too small for three parts.
    """
    names = new_cnames or {}
    groups = []
    for label, folder in enumerate(class_folders(image_dir, ignored)):
        path = os.path.join(image_dir, folder)
        groups.append(
            [
                Datum(os.path.join(path, image), label, classname=names.get(folder, folder))
                for image in listdir_nohidden(path, sort=True)
            ]
        )
    return split_groups(groups, p_trn, p_val, rng)


def split_groups(
    groups: Sequence[list[Datum]], p_trn: float = SHARES[0], p_val: float = SHARES[1], rng: Any = random
) -> Splits:
    """Shuffle each group and cut it into training, validation and test; ValueError if a part would be empty."""
    train: list[Datum] = []
    val: list[Datum] = []
    test: list[Datum] = []
    for number, group in enumerate(groups):
        items = list(group)
        rng.shuffle(items)
        n_train, n_val = round(len(items) * p_trn), round(len(items) * p_val)
        if not (n_train > 0 and n_val > 0 and len(items) - n_train - n_val > 0):
            name = items[0].classname if items else f"number {number}"
            raise ValueError(f"class {name!r} has {len(items)} images, too few to split into train, val and test")
        train += items[:n_train]
        val += items[n_train : n_train + n_val]
        test += items[n_train + n_val :]
    return train, val, test


def split_trainval(
    trainval: Sequence[Datum], p_val: float = SHARES[1], rng: Any = random
) -> tuple[list[Datum], list[Datum]]:
    """Cut a validation part of the share `p_val` off each class, classes in the order of their first item.

    Raises:
        ValueError: a class is too small for a validation item.
    """
    groups: dict[int, list[Datum]] = {}
    for item in trainval:
        groups.setdefault(item.label, []).append(item)
    train: list[Datum] = []
    val: list[Datum] = []
    for items in groups.values():
        n_val = round(len(items) * p_val)
        if n_val < 1:
            raise ValueError(f"class {items[0].classname!r} has {len(items)} images, too few for a validation part")
        rng.shuffle(items)
        val += items[:n_val]
        train += items[n_val:]
    return train, val


def class_folders(path: str | os.PathLike[str], ignored: Sequence[str] = ()) -> list[str]:
    """Names of the folders in `path`, sorted by code point, without hidden and ignored ones.

    Raises:
        FileNotFoundError: there is no such folder, or no class folder in it.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f'there is no folder "{path}", expected one with a folder per class')
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".") and e.name not in ignored)
    if not names:
        raise FileNotFoundError(f'"{path}" has no class folders')
    return names


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a text file without line ends and empty lines.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is not UTF-8 text, or empty.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no annotation file "{path}"')
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as err:
        raise ValueError(f'"{path}" is not a text file: {err}') from err
    if not lines:
        raise ValueError(f'"{path}" is empty')
    return lines


def read_mat(path: str | os.PathLike[str], name: str) -> Any:
    """Variable `name` of a MATLAB file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged or has no such variable.
        ImportError: SciPy is not installed.
    """
    from scipy.io import loadmat  # slow to import, and needed here only

    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no annotation file "{path}"')
    try:
        content = loadmat(path)
    # SciPy raises many kinds of errors for damaged files, so every one becomes the same clear message.
    except Exception as err:
        raise ValueError(f'"{path}" is damaged or no MATLAB file: {err}; fetch it again') from err
    if name not in content:
        found = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise ValueError(f'"{path}" has no variable {name!r}, found {found}')
    return content[name]
