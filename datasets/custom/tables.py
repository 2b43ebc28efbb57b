"""Tables of custom images: CSV, TSV, JSON and JSON lines with a path, a label and perhaps a split in each row."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dassl.utils import read_json

__all__ = ["SPLITS", "SPLIT_NAMES", "TABLE_SUFFIXES", "Row", "check_label", "pick_columns", "read_table", "split_name"]

SPLITS = ("train", "val", "test")
# What people call the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
# What people call the columns.
_COLUMNS = {
    "path": ("path", "file_name", "filename", "file", "image"),
    "image": ("image", "img", "bytes"),
    "label": ("label", "class", "category"),
    "split": ("split",),
    "classname": ("classname", "class_name"),
}


class Row(NamedTuple):
    """One image.

    path: below the folder of the images, with "/". label: a class number, or the text that stands for the class.
    split: train, val, test, or None if nothing says. classname: name of the class, None if nothing says.
    where: the place in the source, for messages.
    """

    path: str
    label: int | str
    split: str | None
    classname: str | None
    where: str


def read_table(path: Path, images: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Rows of a table.

    CSV and TSV need a header. JSON is a list of objects, a list of [path, label] or [path, label, split], or an object
    with lists of [path, label] or [path, label, class name] below train, val and test (a split file of CoOp). In a CSV
    whose labels are all numbers, these are class numbers; everywhere else the type says it.

    Args:
        path: a file that ends in one of TABLE_SUFFIXES.
        images: the folder that paths in the table are below.
        columns: names of the columns for path, label, split and classname, where they are not the usual ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the table is damaged, a column is missing, or an entry is not usable; the message says where.
    """
    if not path.is_file():
        raise FileNotFoundError(f'there is no table "{path}"')
    if path.suffix in (".csv", ".tsv"):
        rows = list(_records(_csv_records(path), path, columns or {}, images))
        if rows and all(isinstance(row.label, str) and row.label.isdecimal() for row in rows):
            rows = [row._replace(label=int(row.label)) for row in rows]
    elif path.suffix == ".jsonl":
        rows = list(_records(_json_lines(path), path, columns or {}, images))
    else:
        content = read_json(path)
        if isinstance(content, dict):
            rows = list(_split_file(content, path, images))
        elif isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
            places = ((f'entry {index} of "{path}"', entry) for index, entry in enumerate(content))
            rows = list(_records(places, path, columns or {}, images))
        elif isinstance(content, list):
            rows = list(_lists(content, path, images))
        else:
            raise ValueError(f'"{path}" holds {type(content).__name__}, expected a list or an object of lists')
    if not rows:
        raise ValueError(f'"{path}" has no rows')
    return rows


def pick_columns(
    wanted: Mapping[str, bool], found: Sequence[str], chosen: Mapping[str, str], where: str
) -> dict[str, str | None]:
    """Name of the column for each part: the chosen one, else the usual one that is there, else None.

    Args:
        wanted: part -> whether it must be there; parts are path, image, label, split and classname.
        found: columns of the table.
        chosen: part -> column, for those that are not named as usual.

    Raises:
        ValueError: a chosen or needed column is not there.
    """
    columns: dict[str, str | None] = {}
    for part, needed in wanted.items():
        usual = (chosen[part],) if part in chosen else _COLUMNS[part]
        columns[part] = next((name for name in usual if name in found), None)
        if columns[part] is None and (needed or part in chosen):
            raise ValueError(
                f"{where} has no column {' or '.join(map(repr, usual))}, found {', '.join(map(str, found)) or 'none'}; "
                f"`columns: {{{part}: NAME}}` in dataset.yaml names another"
            )
    return columns


def split_name(value: Any, where: str) -> str | None:
    """train, val or test for what people write; None for nothing; ValueError for anything else."""
    if value is None or value == "":
        return None
    name = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if name is None:
        raise ValueError(f"{where} has the split {value!r}, expected train, val or test")
    return name


def check_label(value: Any, where: str) -> int | str:
    """A class number of at least 0 or the text of a class; ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError(f"{where} has the label {value!r}, expected a class or a number of at least 0")


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=header.count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            if reader.fieldnames is None:
                raise ValueError(f'"{path}" is empty')
            reader.fieldnames = [name.strip() for name in reader.fieldnames]
            for record in reader:
                where = f'line {reader.line_num} of "{path}"'
                if None in record or None in record.values():
                    raise ValueError(f"{where} does not have the {len(reader.fieldnames)} fields of the header")
                yield where, record
    except (csv.Error, UnicodeDecodeError) as err:
        raise ValueError(f'"{path}" is not a table of text: {err}') from err


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f'line {number} of "{path}"'
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as err:
                raise ValueError(f"{where} is not JSON: {err}") from err
            if not isinstance(record, dict):
                raise ValueError(f"{where} is {record!r}, expected an object")
            yield where, record


def _records(
    records: Iterable[tuple[str, dict[str, Any]]], path: Path, chosen: Mapping[str, str], images: Path
) -> Iterator[Row]:
    columns: dict[str, str | None] = {}
    for where, record in records:
        if not columns:
            wanted = {"path": True, "label": True, "split": False, "classname": False}
            columns = pick_columns(wanted, list(record), chosen, f'"{path}"')
        value = {part: record.get(column) if column else None for part, column in columns.items()}
        yield _row(value["path"], value["label"], value["split"], value["classname"], where, images)


def _lists(content: list[Any], path: Path, images: Path) -> Iterator[Row]:
    for index, entry in enumerate(content):
        where = f'entry {index} of "{path}"'
        if not isinstance(entry, list) or len(entry) not in (2, 3):
            raise ValueError(f"{where} is {entry!r}, expected [path, label] or [path, label, split]")
        yield _row(entry[0], entry[1], entry[2] if len(entry) == 3 else None, None, where, images)


def _split_file(content: dict[str, Any], path: Path, images: Path) -> Iterator[Row]:
    if not content:
        raise ValueError(f'"{path}" is empty, expected lists below train, val and test')
    for key, entries in content.items():
        split = split_name(key, f'"{path}"')
        if not isinstance(entries, list):
            raise ValueError(f'{key} in "{path}" is {type(entries).__name__}, expected a list')
        for index, entry in enumerate(entries):
            where = f'entry {index} in {key} of "{path}"'
            if not isinstance(entry, list) or len(entry) not in (2, 3):
                raise ValueError(f"{where} is {entry!r}, expected [path, label] or [path, label, class name]")
            yield _row(entry[0], entry[1], split, entry[2] if len(entry) == 3 else None, where, images)


def _row(path: Any, label: Any, split: Any, classname: Any, where: str, images: Path) -> Row:
    if classname is not None and (not isinstance(classname, str) or not classname.strip()):
        raise ValueError(f"{where} has the class name {classname!r}, expected a text")
    return Row(_below(path, where, images), check_label(label, where), split_name(split, where), classname, where)


def _below(path: Any, where: str, images: Path) -> str:
    """The path below the folder of images, with "/"; absolute ones may point there too."""
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{where} has the path {path!r}, expected the path of an image")
    text = path.strip()
    if os.path.isabs(text):
        text = os.path.relpath(text, images)
    parts = PurePosixPath(Path(text).as_posix()).parts
    if not parts or ".." in parts:
        raise ValueError(
            f'{where} has the path {path!r}, expected one below "{images}"; `images: FOLDER` in dataset.yaml chooses '
            "another folder"
        )
    return "/".join(parts)
