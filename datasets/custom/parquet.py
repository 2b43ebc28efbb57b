"""Parquet files with images in them, as image data sets are commonly published.

The images are written to a cache folder once, byte for byte, because everything else reads files. This needs pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from dassl.utils import read_json, write_json
from datasets.custom.tables import SPLIT_NAMES, Row, check_label, pick_columns, split_name

__all__ = ["find_parquet", "read_parquet"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_BATCH = 64  # rows in memory at a time
_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def read_parquet(
    files: Sequence[Path], root: Path, cache: Path, columns: Mapping[str, str] | None = None
) -> tuple[list[Row], Path, list[str] | None]:
    """Rows of parquet files, with their images written below `cache`.

    A file has a column of images (bytes, or structs with a field `bytes`), a column of labels (numbers or texts), and
    perhaps a column `split`; without that, a file or its folder whose name starts with train, val, validation or test
    is of that split. Class names of numbers are taken from the schema where they were written by the `datasets`
    library of Hugging Face.

    Args:
        files: the parquet files, in order.
        root: folder that holds them.
        cache: folder for the images; a sub-folder is made per state of the files (names, sizes, times).
        columns: names of the columns for image, label and split, where they are not the usual ones.

    Returns:
        Rows, the folder that their paths are below, and class names by number (None if the files have none).

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a file is damaged, a column is missing, or a row has no image or label; the message says where.
        OSError: the cache cannot be written.
    """
    state = [[file.relative_to(root).as_posix(), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = {"format": _FORMAT, "files": state, "columns": dict(columns or {})}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"{root.name}-{digest}"
    index = folder / "rows.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not index.is_file():
            logger.info("Writing the images of %d parquet file(s) to %s", len(files), folder)
            rows: list[list[Any]] = []
            names: list[str] | None = None
            for file in files:
                names = _class_names(file, columns or {}) or names
                for row in _rows(file, root, folder / "images", columns or {}):
                    rows.append([row.path, row.label, row.split, row.where])
            write_json({"names": names, "rows": rows}, index)  # last: with this file the folder is complete
        content = read_json(index)
    rows_read = [Row(path, label, split, None, where) for path, label, split, where in content["rows"]]
    return rows_read, folder / "images", content["names"]


def _open(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as err:
        raise ImportError(f'reading "{file}" needs pyarrow, which is not installed: pip install pyarrow') from err
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (ValueError, OSError) as err:  # pyarrow's errors are kinds of these
        raise ValueError(f'"{file}" is damaged or no parquet file: {err}') from err


def _columns(names: Sequence[str], file: Path, chosen: Mapping[str, str]) -> dict[str, str | None]:
    wanted = {"image": True, "label": True, "split": False}
    return pick_columns(wanted, names, {part: name for part, name in chosen.items() if part in wanted}, f'"{file}"')


def _rows(file: Path, root: Path, images: Path, chosen: Mapping[str, str]) -> Iterator[Row]:
    table = _open(file)
    columns = _columns(table.schema_arrow.names, file, chosen)
    image, label, own_split = columns["image"], columns["label"], columns["split"]
    below = file.relative_to(root).with_suffix("").as_posix()
    split = _split_of(below)
    (images / below).mkdir(parents=True, exist_ok=True)
    number = 0
    for batch in _batches(table, file, [name for name in columns.values() if name is not None]):
        for record in batch.to_pylist():
            where = f'row {number} of "{file}"'
            content = record[image]
            content = content.get("bytes") if isinstance(content, dict) else content
            if not isinstance(content, bytes):
                raise ValueError(f"{where} has no image bytes but {type(content).__name__}")
            path = f"{below}/{number:07d}{_suffix(content, where)}"
            (images / path).write_bytes(content)
            named = split if own_split is None else split_name(record[own_split], where)
            yield Row(path, check_label(record[label], where), named, None, where)
            number += 1


def _batches(table: Any, file: Path, columns: list[str]) -> Iterator[Any]:
    try:
        yield from table.iter_batches(batch_size=_BATCH, columns=columns)
    except (ValueError, OSError) as err:  # a page that does not unpack
        raise ValueError(f'"{file}" is damaged: {err}') from err


def _suffix(content: bytes, where: str) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    for start, suffix in _SIGNATURES:
        if content.startswith(start):
            return suffix
    raise ValueError(f"{where} holds no image that is known (JPEG, PNG, WebP, GIF, BMP, TIFF)")


def _split_of(below: str) -> str | None:
    """Split that a file name such as data/train-00000-of-00002 or a folder such as train/0000 says."""
    for part in reversed(below.split("/")):
        split = SPLIT_NAMES.get(re.split(r"[-_.]", part.lower())[0])
        if split is not None:
            return split
    return None


def _class_names(file: Path, chosen: Mapping[str, str]) -> list[str] | None:
    """Class names that Hugging Face's library writes into the schema, None if there are none."""
    schema = _open(file).schema_arrow
    label = _columns(schema.names, file, chosen)["label"]
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = info["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):  # another schema: no names there
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def find_parquet(root: Path) -> list[Path]:
    """Parquet files below `root`, sorted, without hidden folders."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder) / name for name in files if name.endswith(".parquet") and not name.startswith(".")]
    return sorted(found)
