"""Photographs of `Photos`, out of two Debian packages: cut-outs of Tux Paint's stamps, and pictures of GCompris.

photos.yaml says which pictures, and their classes. Pictures with transparency are laid on white.
"""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from datasets.prepare.catalog import read_data
from datasets.prepare.unpack import clear_faults, unpack

__all__ = ["gcompris", "tuxpaint"]

_HEADER = 60  # bytes before each member of an ar archive


class _Picture(NamedTuple):
    path: str  # as in photos.yaml
    place: str  # class folder and file name


def tuxpaint(archive: Path, folder: Path, home: Path, quiet: bool = False) -> None:
    """Write the stamps that photos.yaml names to tuxpaint/<class>/.

    Raises:
        ValueError: the archive is damaged, or has no such stamp.
    """
    _unpack_package(archive, {"usr/share/tuxpaint/stamps": "stamps"}, folder)
    for picture in tqdm(_wanted("tuxpaint"), desc=archive.name, unit=" pictures", disable=quiet):
        file = folder / "stamps" / f"{picture.path}.png"
        if not file.is_file():
            raise ValueError(f"{archive.name} has no stamp {picture.path!r}")
        _write(file.read_bytes(), folder / "tuxpaint" / picture.place, archive.name)
    shutil.rmtree(folder / "stamps")


def gcompris(archive: Path, folder: Path, home: Path, quiet: bool = False) -> None:
    """Write the pictures of GCompris that photos.yaml names to gcompris/<class>/.

    Raises:
        ValueError: the archive is damaged, or has no such picture.
    """
    _unpack_package(archive, {"usr/share/gcompris-qt/rcc": "rcc"}, folder)
    resources: dict[str, dict[str, bytes]] = {}
    for picture in tqdm(_wanted("gcompris"), desc=archive.name, unit=" pictures", disable=quiet):
        activity = picture.path.split("/")[0]
        if activity not in resources:
            resources[activity] = dict(read_resources((folder / "rcc" / f"{activity}.rcc").read_bytes()))
        name = f"gcompris/src/activities/{picture.path}.webp"
        if name not in resources[activity]:
            raise ValueError(f"{archive.name} has no picture {name!r}")
        _write(resources[activity][name], folder / "gcompris" / picture.place, archive.name)
    shutil.rmtree(folder / "rcc")


def read_resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of a binary resource file of Qt 5 (rcc), format 1 to 3, plain or compressed by zlib.

    Raises:
        ValueError: another kind of file, or a damaged one.
    """
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4I", content)
        if magic != b"qres" or version not in (1, 2, 3):
            raise ValueError("no resource file of Qt")
        node = 14 if version == 1 else 22
        waiting, known = [(0, "")], 1
        while waiting:
            number, folder = waiting.pop()
            start = tree + number * node
            name, flags, first, second = struct.unpack_from(">IHII", content, start)
            length = struct.unpack_from(">H", content, names + name)[0] if number else 0
            text = content[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
            path = f"{folder}/{text}" if folder else text
            if flags & 2:  # a folder: number of its entries, first of them, which follows its folder
                known += first
                if tree + known * node > len(content):
                    raise ValueError("the resource file is damaged: its folders have more entries than it has")
                waiting += [(child, path) for child in range(second, second + first)]
                continue
            place = data + second
            packed = content[place + 4 : place + 4 + struct.unpack_from(">I", content, place)[0]]
            if flags & 4:
                raise ValueError(f"{path} is compressed by zstd, expected zlib")
            yield path, zlib.decompress(packed[4:]) if flags & 1 else packed
    except (struct.error, zlib.error, UnicodeDecodeError) as err:
        raise ValueError(f"the resource file is damaged: {err}") from err


def _wanted(package: str) -> list[_Picture]:
    """Pictures of a package; names keep their folders, since two may have the same stem."""
    return [
        _Picture(f"{folder}/{stem}", f"{name}/{folder.replace('/resource', '').replace('/', '-')}-{stem}")
        for name, packages in read_data("photos.yaml").items()
        for folder, stems in packages.get(package, {}).items()
        for stem in stems
    ]


def _unpack_package(archive: Path, take: dict[str, str], folder: Path) -> None:
    """Unpack parts of a Debian package: an ar archive with the files in data.tar.*."""
    with archive.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{archive.name} is no Debian package")
        while len(header := file.read(_HEADER)) == _HEADER:
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                with (folder / "data.tar").open("wb") as inner:
                    shutil.copyfileobj(_Part(file, size), inner, 1 << 20)
                unpack(folder / "data.tar", take, folder, quiet=True)
                (folder / "data.tar").unlink()
                return
            file.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError(f"{archive.name} is damaged: it has no data.tar")


class _Part(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: io.BufferedReader, size: int):
        self.file, self.left = file, size

    def read(self, size: int = -1) -> bytes:
        found = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(found)
        return found


def _write(content: bytes, place: Path, archive: str) -> None:
    """Write a picture as it is, or on white as a PNG where it is transparent."""
    with clear_faults(archive), Image.open(io.BytesIO(content)) as picture:
        place.parent.mkdir(parents=True, exist_ok=True)
        if picture.has_transparency_data:
            cut_out = picture.convert("RGBA")
            whole = Image.new("RGBA", cut_out.size, "white")
            whole.alpha_composite(cut_out)
            whole.convert("RGB").save(f"{place}.png")
        else:
            Path(f"{place}.{(picture.format or 'png').lower()}").write_bytes(content)
