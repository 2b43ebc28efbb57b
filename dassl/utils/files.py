"""Files that are either whole or absent: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

PathLike = str | os.PathLike[str]


def atomic_write(
    path: PathLike, write: Callable[[BinaryIO], Any], before_rename: Callable[[Path], Any] | None = None
) -> None:
    """Put what `write(file)` writes at `path`, or leave `path` as it was.

    The bytes go to a temporary file in the same folder (made if missing), which is flushed, fsynced and renamed over
    `path`; a process killed at any moment leaves the old content or the new one. A failure removes the temporary file.
    `before_rename` gets the temporary file, whole and on the disk.

    Raises:
        OSError: the folder cannot be written or the disk is full; the message names `path`, errno is kept.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename(temporary)
        os.replace(temporary, path)
        temporary = None
        _fsync_folder(path.parent)
    except Exception as err:
        # torch wraps a failed write of its archive in a RuntimeError: the cause is somewhere in the chain.
        cause = _os_error(err)
        if cause is None:
            raise
        raise OSError(cause.errno, _write_problem(path, cause)) from err
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_text(text: str, path: PathLike) -> None:
    """Write `text` as UTF-8, atomically (see atomic_write)."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def write_json(obj: Any, fpath: PathLike) -> None:
    """Write `obj` as JSON with an indent of 4, atomically (see atomic_write). The object comes first, as in Dassl.

    Raises:
        ValueError: a value is not finite; TypeError: a value is not a JSON type. Nothing is written then.
    """
    write_text(json.dumps(obj, indent=4, separators=(",", ": "), ensure_ascii=False, allow_nan=False) + "\n", fpath)


def read_json(fpath: PathLike, unique: bool = False) -> Any:
    """Read a JSON file; `unique`: a key that is there twice, of which JSON takes the last, is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the message names the file and the place.
    """
    try:
        with open(fpath, encoding="utf-8") as file:
            return json.load(file, object_pairs_hook=_unique if unique else None)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValueError(f'"{fpath}" is not a JSON file: {err}') from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise json.JSONDecodeError(f"the key {twice!r} stands twice", "", 0)
    return found


def _fsync_folder(folder: Path) -> None:
    """Make the rename itself last; file systems that cannot open a folder are left alone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _os_error(err: BaseException) -> OSError | None:
    seen: BaseException | None = err
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _write_problem(path: Path, cause: OSError) -> str:
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'no space left on the disk while writing "{path}"; what was there before is unchanged'
    return f'cannot write "{path}": {cause.strerror or cause}'
