"""Options of dataset.yaml for custom images, and the reader of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dassl.utils.yaml_files import load_yaml
from datasets.custom.tables import SPLIT_NAMES, Row
from datasets.prepare.splits import SHARES

__all__ = ["DEFAULT_TEMPLATE", "OPTIONS_FILES", "Options", "read_options", "walk_class_folders"]

DEFAULT_TEMPLATE = "a photo of a {}."
OPTIONS_FILES = ("dataset.yaml", "dataset.yml")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_COLUMNS = ("path", "image", "label", "split", "classname")


@dataclass(frozen=True)
class Options:
    """Content of dataset.yaml; everything may be left out.

    classnames: folder, label or class number (as text) -> class name; or the names in label order.
    template: prompt with {} for the class name.
    items: a table or parquet files ("*" and "?" allowed), below the folder of this file.
    images: folder that the paths of a table are below; also where class folders are.
    columns: part -> column of the table, for those that are not named as usual.
    train, val: shares of an automatic split; the rest is test. seed: of that split.
    cut_val: share of the training images that becomes validation where a split has none; None: no validation.
    """

    classnames: Mapping[str, str] | list[str] = field(default_factory=dict)
    template: str = DEFAULT_TEMPLATE
    items: str | None = None
    images: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    train: float = SHARES[0]
    val: float = SHARES[1]
    seed: int = 1
    cut_val: float | None = None


def read_options(path: Path) -> Options:
    """Options of a yaml file.

    Raises:
        ValueError: it is not valid YAML, or holds an unknown key or a value that is not usable; the message says which.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ValueError(f'"{path}" is not a YAML file: {err}') from err
    content = {} if content is None else content
    known = ("classnames", "template", "items", "images", "columns", "split")
    if not isinstance(content, dict) or set(content) - set(known):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'"{path}" holds {found}, expected some of {", ".join(known)}')
    values: dict[str, Any] = {}
    for key in ("template", "items", "images"):
        if key in content:
            values[key] = _text(content[key], f'{key} in "{path}"')
    marks = [values.get("template", "{}").count(mark) for mark in ("{}", "{", "}")]
    if marks != [1, 1, 1]:
        raise ValueError(f'template in "{path}" is {values["template"]!r}, expected {{}} once, for the class name')
    if "classnames" in content:
        values["classnames"] = _classnames(content["classnames"], path)
    if "columns" in content:
        values["columns"] = _texts(content["columns"], _COLUMNS, f'columns in "{path}"')
    if "split" in content:
        values.update(_split(content["split"], f'split in "{path}"'))
    return Options(**values)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} is {value!r}, expected a text (in quotes if it looks like a number or yes/no)")
    return value


def _texts(value: Any, known: tuple[str, ...], where: str) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) - set(known):
        raise ValueError(f"{where} is {value!r}, expected names for some of {', '.join(known)}")
    return {key: _text(name, f"{key} of {where}") for key, name in value.items()}


def _classnames(value: Any, path: Path) -> dict[str, str] | list[str]:
    where = f'classnames in "{path}"'
    if isinstance(value, list) and value:
        return [_text(name, where) for name in value]
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where} is {value!r}, expected a list, or folder or label and name per line")
    for key in value:
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise ValueError(f"{where} has the key {key!r}: put quotes around what yaml takes for another type")
    return {str(key): _text(name, f"{key} of {where}") for key, name in value.items()}


def _split(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) - {"train", "val", "seed"}:
        raise ValueError(f"{where} is {value!r}, expected some of train, val (shares) and seed")
    shares = {key: value[key] for key in ("train", "val") if key in value}
    for key, share in shares.items():
        least = 0.0 if key == "val" else 1e-9
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not least <= share < 1:
            raise ValueError(f"{key} of {where} is {share!r}, expected a share between 0 and 1")
    if shares.get("train", SHARES[0]) + shares.get("val", SHARES[1]) >= 1:
        raise ValueError(f"{where} leaves nothing for test: train and val together must be below 1")
    seed = value.get("seed", 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed of {where} is {seed!r}, expected a number of at least 0")
    return {**shares, "seed": seed, "cut_val": shares.get("val")}


def walk_class_folders(root: Path) -> list[Row]:
    """Rows of the images in class folders, with or without train, val and test folders above them.

    A class is a folder, whatever lies deeper belongs to it. Files that are not images and hidden files are left out.

    Raises:
        ValueError: no images; a class folder without images; folders of splits and of classes side by side.
    """
    folders = _subfolders(root)
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if splits and len(splits) < len(folders) and len({SPLIT_NAMES[name.lower()] for name in splits}) > 1:
        others = ", ".join(name for name in folders if name not in splits)
        raise ValueError(f'"{root}" has the folders {", ".join(splits)} and beside them {others}: splits or classes?')
    if not splits or len(splits) < len(folders):
        return list(_classes(root, "", folders, None))
    rows: list[Row] = []
    for name in splits:
        rows += _classes(root, f"{name}/", _subfolders(root / name), SPLIT_NAMES[name.lower()])
    return rows


def _classes(root: Path, above: str, classes: list[str], split: str | None) -> Iterator[Row]:
    if not classes:
        raise ValueError(
            f'"{root / above}" has no class folders; `python -m align_prompt predict RUN IMAGE...` classifies images '
            "without labels"
        )
    for name in classes:
        files = [file for file in _files(root / above / name) if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f'class folder "{root / above / name}" has no images; remove it or fill it')
        for file in files:
            path = f"{above}{name}/{file}"
            yield Row(path, name, split, None, f'"{root / path}"')


def _subfolders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files(path: Path) -> Iterator[str]:
    """Files below a folder, relative with "/", sorted within each folder; no folder is entered twice."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(folder, name), path)).as_posix()
