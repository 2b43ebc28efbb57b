"""Download addresses, checksums and targets of the files of the standard data sets.

Sizes and checksums are those that torchvision and TensorFlow Datasets publish for the same files; where neither has
one, none is given and what arrived is recorded instead. They are in sources.yaml and catalog.yaml.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.prepare.catalog import CATALOG, DatasetInfo, read_data

__all__ = ["DRIVE", "HAND", "SOURCES", "Source", "checksums"]

DRIVE = "drive:"
"""An address "drive:ID" is a file on Google Drive."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file to fetch.

    Attributes:
        file: its name, also in a folder of files fetched elsewhere.
        urls: addresses in the order in which they are tried; none if people must fetch it by hand.
        size: bytes, None if not known.
        checks: md5, sha256 or git (git's SHA-1 of the blob) -> hex digest; empty if none is known.
        take: path in the archive -> path below the data set's folder; empty for a file that is not an archive.
        inner: archive in the archive that `take` speaks of; "" if there is none.
        convert: name of the function of convert.py that writes `take`'s targets; "" just unpacks.
        role: images; names (split files and class names, which readers need); annotations, for making a split.
        beside: places below the data root where other data sets keep the same file.
        unless: path below the data set's folder; if it exists the file is not needed.
    """

    file: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    checks: Mapping[str, str] = field(default_factory=dict)
    take: Mapping[str, str] = field(default_factory=dict)
    inner: str = ""
    convert: str = ""
    role: str = "images"
    beside: tuple[str, ...] = ()
    unless: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths below the data set's folder that exist when the file has been put in place."""
        return tuple(self.take.values()) or (self.file,)


def checksums(path: Path, kinds: Mapping[str, str] | tuple[str, ...] = ("md5", "sha256")) -> dict[str, str]:
    """Digests of a file, read once; kinds are md5, sha256 and git."""
    digests = {}
    for kind in kinds:
        digests[kind] = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if "git" in digests:
        digests["git"].update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


_DATA = read_data("sources.yaml")
HAND: Mapping[str, str] = _DATA["manual"]
"""Manual instructions for files that cannot, or often cannot, be fetched automatically."""


def _small_files(info: DatasetInfo) -> list[Source]:
    """Split files and class names, which CoOp's authors keep on Google Drive."""
    found = []
    for file, number in info.drive.items():
        if file.endswith(".zip"):
            continue
        source = Source(file, (DRIVE + number,), role="annotations" if file in info.annotations else "names")
        if file in info.sha256:
            source = replace(source, checks={"sha256": info.sha256[file]})
        elif file in info.git_blob:
            source = replace(source, checks={"git": info.git_blob[file]})
        if file == "classnames.txt":
            others = [other.folder for other in CATALOG.values() if "classnames.txt" in other.drive]
            source = replace(source, beside=tuple(f"{folder}/{file}" for folder in others if folder != info.folder))
        found.append(source)
    return found


SOURCES: dict[str, tuple[Source, ...]] = {
    name: (*_small_files(info), *(Source(**entry) for entry in _DATA["archives"].get(name, ())))
    for name, info in CATALOG.items()
}
"""Files of each data set, in the order in which they are fetched."""
