"""Unpacking of archives from strangers: everything is looked through before anything is written.

Refused are absolute paths, "..", links that leave the archive, device files and the like, and encrypted or damaged
archives. Links inside are written as copies of what they point to, so no link is ever made.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

__all__ = ["Entry", "clear_faults", "entries", "free_space", "safe_path", "unpack", "walk"]

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class Entry(NamedTuple):
    """One member of an archive: path with "/"; kind file, folder or link; bytes; where a link points to."""

    path: str
    kind: str
    size: int
    link: str = ""


def safe_path(name: str) -> str:
    """Path of a member without empty parts and "."; ValueError if it is absolute or has ".."."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise ValueError(f"member {name!r} would be written outside the folder")
    return "/".join(parts)


def entries(archive: Path) -> list[Entry]:
    """All members of an archive.

    Raises:
        ValueError: it is not a tar or zip archive, is damaged, or has a member that may not be written.
    """
    with _open(archive) as opened:
        found = [entry for entry, _ in _members(opened)]
    files = {entry.path for entry in found if entry.kind != "folder"}
    for entry in found:
        if entry.kind == "link" and entry.link not in files:
            raise ValueError(f"{archive.name} is refused: link {entry.path!r} points to no file of the archive")
    return found


def walk(archive: Path) -> Iterator[tuple[Entry, Callable[[], IO[bytes]]]]:
    """Members in their order, each with a function that opens its content; look through `entries` before."""
    with _open(archive) as opened:
        yield from _members(opened)


def unpack(archive: Path, take: Mapping[str, str], folder: Path, inner: str = "", quiet: bool = False) -> None:
    """Unpack parts of an archive into `folder`, which should be a new one: a failure leaves it half filled.

    Args:
        take: path in the archive -> path below `folder`; "." is the whole archive. A path that is not there is looked
            for further down, in case somebody packed the folder above it as well.
        inner: the archive in the archive that `take` speaks of.

    Raises:
        ValueError: as `entries`, or a path of `take` or `inner` is not in the archive.
        OSError: the disk is full or cannot be written.
    """
    if inner:
        unpack(archive, {inner: "inner archive"}, folder, quiet=True)
        try:
            unpack(folder / "inner archive", take, folder, quiet=quiet)
        finally:
            (folder / "inner archive").unlink()
        return
    found = entries(archive)
    places = {_locate(found, wanted, archive.name): target for wanted, target in take.items()}
    wanted = {entry.path: place for entry in found if (place := _place(entry.path, places)) is not None}
    free_space(folder, sum(entry.size for entry in found if entry.path in wanted), archive.name)
    links = []
    with clear_faults(archive.name):
        for entry, opened in tqdm(walk(archive), total=len(found), unit=" files", desc=archive.name, disable=quiet):
            place = wanted.get(entry.path)
            if place is None:
                continue
            if entry.kind == "folder":
                (folder / place).mkdir(parents=True, exist_ok=True)
            elif entry.kind == "link":
                links.append(entry)
            else:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, (folder / place).open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    _copy_links(links, wanted, folder)


def free_space(folder: Path, needed: int, what: str) -> None:
    """OSError if the disk of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{what} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free at {folder}")


def _place(path: str, places: Mapping[str, str]) -> str | None:
    """Target path of a member, None if it is not wanted."""
    for start, target in places.items():
        if start == "." or path == start or path.startswith(f"{start}/"):
            rest = path if start == "." else path[len(start) + 1 :]
            return posixpath.join(target, rest) if rest else target
    return None


def _locate(found: Sequence[Entry], wanted: str, name: str) -> str:
    """The path of the archive that is meant by `wanted`."""
    if wanted == ".":
        return wanted
    starts = set()
    for entry in found:
        place = f"/{entry.path}/".find(f"/{wanted}/")
        if place >= 0:
            starts.add(entry.path[: place + len(wanted)])
    if not starts:
        some = ", ".join(sorted({entry.path.split("/")[0] for entry in found})[:5]) or "nothing"
        raise ValueError(f"{name} has no {wanted!r}; it has {some}")
    least = min(start.count("/") for start in starts)
    nearest = [start for start in starts if start.count("/") == least]
    if len(nearest) > 1:
        raise ValueError(f"{name} has {wanted!r} more than once: {', '.join(sorted(nearest)[:5])}")
    return nearest[0]


def _copy_links(links: Sequence[Entry], wanted: Mapping[str, str], folder: Path) -> None:
    """Copies of what links point to; links to links are followed."""
    targets = {entry.path: entry.link for entry in links}
    for entry in links:
        target, steps = entry.link, 0
        while target in targets and steps <= len(targets):
            target, steps = targets[target], steps + 1
        if target not in wanted or target in targets:
            raise ValueError(f"link {entry.path!r} points to {entry.link!r}, which is not unpacked")
        place = folder / wanted[entry.path]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / wanted[target], place)


@contextlib.contextmanager
def clear_faults(name: str) -> Iterator[None]:
    """Faults of the content of the archive `name` become ValueError; those of the disk stay as they are."""
    try:
        yield
    except _DAMAGED as err:
        reason = str(err).split("\n")[0].rstrip(":")
        raise ValueError(f"{name} is damaged or no archive: {reason}") from err
    except (NotImplementedError, RuntimeError) as err:  # encrypted, or packed in a way that Python cannot read
        raise ValueError(f"{name} cannot be unpacked: {err}") from err
    except OSError as err:
        if err.errno is None:  # bz2's word for damaged data
            raise ValueError(f"{name} is damaged: {err}") from err
        raise


@contextlib.contextmanager
def _open(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """The archive, whatever its name ends with."""
    with clear_faults(archive.name):
        # tar goes first: a tar that ends with a zip would pass for a zip
        if not tarfile.is_tarfile(archive) and zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield opened
        else:
            with tarfile.open(archive) as opened_tar:
                yield opened_tar


def _members(archive: tarfile.TarFile | zipfile.ZipFile) -> Iterator[tuple[Entry, Callable[[], IO[bytes]]]]:
    name = os.path.basename(str(archive.filename if isinstance(archive, zipfile.ZipFile) else archive.name))
    try:
        if isinstance(archive, zipfile.ZipFile):
            yield from _zip_members(archive)
        else:
            yield from _tar_members(archive)
    except ValueError as err:
        raise ValueError(f"{name} is refused: {err}") from None


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[Entry, Callable[[], IO[bytes]]]]:
    for member in archive:
        path = safe_path(member.name)
        if member.isdir():
            entry = Entry(path, "folder", 0)
        elif member.islnk():
            entry = Entry(path, "link", 0, safe_path(member.linkname))
        elif member.issym():
            entry = Entry(path, "link", 0, _link_target(path, member.linkname))
        elif member.isreg():
            entry = Entry(path, "file", member.size)
        else:
            raise ValueError(f"member {member.name!r} is a device or another special file")
        yield entry, lambda member=member: _content(archive.extractfile(member))  # type: ignore[misc]
    while archive.fileobj is not None and archive.fileobj.read(1 << 20):
        pass  # the checksum of the compressed data stands behind the last member


def _zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[Entry, Callable[[], IO[bytes]]]]:
    for member in archive.infolist():
        path = safe_path(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir():
            entry = Entry(path, "folder", 0)
        elif kind == stat.S_IFLNK:
            entry = Entry(path, "link", 0, _link_target(path, archive.read(member).decode("utf-8", "replace")))
        elif kind in (0, stat.S_IFREG):
            entry = Entry(path, "file", member.file_size)
        else:
            raise ValueError(f"member {member.filename!r} is a device or another special file")
        yield entry, lambda member=member: archive.open(member)  # type: ignore[misc]


def _content(file: Any) -> IO[bytes]:
    if file is None:
        raise ValueError("a member has no content")
    return file


def _link_target(path: str, target: str) -> str:
    """Path that a symbolic link means; ValueError if it leaves the archive."""
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(path), target.replace("\\", "/")))
    if target.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", target) or joined.split("/")[0] == "..":
        raise ValueError(f"link {path!r} points to {target!r}, outside the folder")
    return joined
