"""Fingerprint of a run: short texts and hashes that two runs share exactly if their data protocol is the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .datasets.base_dataset import Datum

__all__ = ["classnames_hash", "files_hash", "relative_paths", "split_hash", "transform_repr"]


def split_hash(items: Iterable[Datum], root: str | os.PathLike[str] = "") -> str:
    """sha256 of the items in order: path relative to `root` with "/", a tab, the label, a newline.

    Equal on machines that keep the same files in different places; different if an item, a label or the order differs.

    Args:
        root: the folder that paths are taken relative to; "" keeps them as they are.
    """
    digest = hashlib.sha256()
    for path, item in relative_paths(items, root):
        digest.update(f"{path}\t{item.label}\n".encode())
    return digest.hexdigest()


def files_hash(items: Iterable[Datum], root: str | os.PathLike[str] = "") -> str:
    """sha256 of the items' files in order: path relative to `root` as in `split_hash`, size, time of the last change.

    Raises:
        OSError: a file is not there.
    """
    digest = hashlib.sha256()
    for path, item in relative_paths(items, root):
        about = os.stat(item.impath)
        digest.update(f"{path}\t{about.st_size}\t{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def relative_paths(items: Iterable[Datum], root: str | os.PathLike[str] = "") -> Iterator[tuple[str, Datum]]:
    """Each item with its path relative to `root`, with "/"; with root "" the path as it is.

    The folder part is worked out once per folder: a list of a million images takes about a second.
    """
    folders: dict[str, str] = {}
    for item in items:
        folder, name = os.path.split(item.impath)
        if not str(root) or name in ("", ".", ".."):
            path = os.path.relpath(item.impath, root) if str(root) else item.impath
            yield Path(path).as_posix(), item
            continue
        if folder not in folders:
            relative = Path(os.path.relpath(folder or ".", root)).as_posix()
            folders[folder] = "" if relative == "." else f"{relative}/"
        yield folders[folder] + name, item


def classnames_hash(classnames: Sequence[str]) -> str:
    """sha256 of the class names in label order, joined by newlines."""
    return hashlib.sha256("\n".join(classnames).encode()).hexdigest()


def transform_repr(transform: Any) -> str:
    """A transform in one line, such as "Resize(...); ToTensor(); Normalize(...)"; lists are joined by " | "."""
    if isinstance(transform, (list, tuple)):
        return " | ".join(transform_repr(part) for part in transform)
    steps = getattr(transform, "transforms", None)
    if isinstance(steps, (list, tuple)):
        return "; ".join(" ".join(repr(step).split()) for step in steps)
    return " ".join(repr(transform).split())
