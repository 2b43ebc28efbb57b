"""SHA-256 of the files of a run, in .sha256.json beside them: what was changed or damaged since is not used unnoticed.

The sum of new content is noted before the content takes its place, next to the sum of the old one, so that a process
killed at any moment leaves a file with one of the sums that are noted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .files import PathLike, atomic_write, write_text

MANIFEST = ".sha256.json"
_known: dict[tuple[Path, int, int], str] = {}  # sums of files this process wrote: path, time and size


def file_sum(path: PathLike) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow_sum(file)


def _slow_sum(file: BinaryIO) -> str:
    digest = hashlib.sha256()  # Python 3.10
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def recorded_write(path: PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """As `atomic_write`, and note the sum of the content in the manifest of the folder."""
    path = Path(path).absolute()
    new = ""

    def note(temporary: Path) -> None:
        nonlocal new
        new = file_sum(temporary)
        old = {_known.pop(_state(path), "") or file_sum(path)} if path.is_file() else set()
        _write(path.parent, {**_lenient(path.parent), path.name: [*(old - {new}), new]})

    atomic_write(path, write, note)
    _known[_state(path)] = new


def _state(path: Path) -> tuple[Path, int, int]:
    about = path.stat()
    return path, about.st_mtime_ns, about.st_size


def remove_recorded(path: PathLike) -> None:
    """Remove a file, if it is there, and its sum."""
    path = Path(path).absolute()
    path.unlink(missing_ok=True)
    sums = _lenient(path.parent)
    if sums.pop(path.name, None) is not None:
        _write(path.parent, sums)


def check_sum(path: PathLike) -> None:
    """Check that a file has the content that was noted for it; one without a note, or without a manifest, passes.

    Raises:
        ValueError: it has another content, or the manifest is damaged.
    """
    path = Path(path).absolute()
    noted = read_manifest(path.parent).get(path.name)
    if noted is not None and path.is_file() and file_sum(path) not in noted:
        raise ValueError(
            f'"{path}" is damaged or was changed since it was written (its SHA-256 is not that in '
            f'"{path.parent / MANIFEST}"); delete it, or take it from a copy; if the change is meant, delete {MANIFEST}'
        )


def read_manifest(folder: PathLike) -> dict[str, list[str]]:
    """The sums noted in a folder by file name; empty without a manifest.

    Raises:
        ValueError: the manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sums = content["files"]
        if content["sum"] == _own_sum(sums):
            return sums
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f'"{path}" is damaged; delete it to go on without its sums')


def problems_below(folder: PathLike) -> tuple[int, list[str]]:
    """Compare all files below a folder with the sums that are noted.

    Returns:
        Number of files that are as they were written, and a line for each that is not.
    """
    right, problems = 0, []
    for manifest in sorted(Path(folder).rglob(MANIFEST)):
        try:
            sums = read_manifest(manifest.parent)
        except ValueError as err:
            problems.append(str(err))
            continue
        for name in sorted(sums):
            path = manifest.parent / name
            if not path.is_file():
                problems.append(f'"{path}" is missing')
                continue
            try:
                check_sum(path)
                right += 1
            except ValueError as err:
                problems.append(str(err))
    return right, problems


def _lenient(folder: Path) -> dict[str, list[str]]:
    """The manifest to be written anew; a damaged one was reported when a file of it was read, or its files are new."""
    try:
        return dict(read_manifest(folder))
    except ValueError:
        return {}


def _write(folder: Path, sums: dict[str, list[str]]) -> None:
    write_text(json.dumps({"files": sums, "sum": _own_sum(sums)}, indent=1) + "\n", folder / MANIFEST)


def _own_sum(sums: Any) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
