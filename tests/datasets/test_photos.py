"""Photographs out of packages of Debian, made here with a picture for each entry of the table."""

import io
import struct
import tarfile
import zlib

import pytest
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from datasets.prepare import photos
from datasets.prepare.catalog import CATALOG, read_data


def picture(kind="RGB", color=(200, 10, 10), form="png"):
    content = io.BytesIO()
    Image.new(kind, (6, 4), color).save(content, form, **({"lossless": True} if form == "webp" else {}))
    return content.getvalue()


def package(path, files):
    """A Debian package with files (path -> content)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in (
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            ("data.tar.xz", data.getvalue()),
        ):
            header = f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode()
            file.write(header + content + b"\n" * (len(content) % 2))
    return path


def resource_file(files):
    """A resource file of Qt, format 1: a flat list of files with their whole path as name, every second compressed."""
    names, data, tree = b"", b"", struct.pack(">IHII", 0, 2, len(files), 1)
    for number, (name, content) in enumerate(files.items()):
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if number % 2 else content
        tree += struct.pack(">IHII", len(names), number % 2, 0, len(data))
        data += struct.pack(">I", len(packed)) + packed
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    start = 20
    return (
        struct.pack(">4s4I", b"qres", 1, start, start + len(tree), start + len(tree) + len(data)) + tree + data + names
    )


def entries(name):
    return [entry.path for entry in photos._wanted(name)]


@pytest.fixture
def stamps(tmp_path):
    files = {f"usr/share/tuxpaint/stamps/{path}.png": picture("RGBA", (200, 10, 10, 0)) for path in entries("tuxpaint")}
    return package(tmp_path / "stamps.deb", files)


@pytest.fixture
def resources(tmp_path):
    files = {}
    for path in entries("gcompris"):
        name = f"usr/share/gcompris-qt/rcc/{path.split('/')[0]}.rcc"
        kind = "RGBA" if path.startswith(("solar_system", "leftright")) else "RGB"  # as in the real package
        color = (200, 10, 10, 0)[: len(kind)]
        files.setdefault(name, {})[f"gcompris/src/activities/{path}.webp"] = picture(kind, color, "webp")
    return package(tmp_path / "resources.deb", {name: resource_file(content) for name, content in files.items()})


def test_the_reader_finds_all_classes_in_what_the_packages_hold(stamps, resources, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photos.tuxpaint(stamps, folder, folder, quiet=True)
    photos.gcompris(resources, folder, folder, quiet=True)
    assert sorted(path.name for path in folder.iterdir()) == ["gcompris", "tuxpaint"]  # nothing is left over
    with Image.open(folder / "tuxpaint" / "bird" / "animals-birds-owl.png") as cut_out:
        assert cut_out.mode == "RGB"
        assert cut_out.getpixel((0, 0)) == (255, 255, 255)
    whole = folder / "gcompris" / "bird" / "erase-swans.webp"
    assert whole.read_bytes() == picture(form="webp")
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Photos", str(tmp_path)
    dataset = DATASET_REGISTRY.get("Photos")(cfg)
    info = CATALOG["Photos"]
    assert dataset.split_origin == ""  # counts, names and picks are those of the real pictures
    assert (len(dataset.train_x), len(dataset.test), dataset.num_classes) == (info.train, info.test, info.classes)
    assert len({item.impath for items in (dataset.train_x, dataset.val, dataset.test) for item in items}) == 500


def test_no_picture_stands_twice_in_the_table():
    assert len(read_data("photos.yaml")) == CATALOG["Photos"].classes
    paths = [path for name in ("gcompris", "tuxpaint") for path in entries(name)]
    assert len(paths) == len(set(paths)) == 500


def test_packages_that_are_damaged_or_other_ones(stamps, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"data\.tar has no 'usr/share/gcompris-qt/rcc'"):
        photos.gcompris(stamps, folder, folder, quiet=True)
    content = stamps.read_bytes()
    stamps.write_bytes(content[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        photos.tuxpaint(stamps, folder, folder, quiet=True)
    stamps.write_bytes(content[:90])
    with pytest.raises(ValueError, match=r"stamps\.deb is damaged: it has no data\.tar"):
        photos.tuxpaint(stamps, folder, folder, quiet=True)
    stamps.write_bytes(b"PK" + content)
    with pytest.raises(ValueError, match=r"stamps\.deb is no Debian package"):
        photos.tuxpaint(stamps, folder, folder, quiet=True)


def test_resource_files_that_are_damaged():
    good = resource_file({"a": b"first", "b": b"second"})
    assert dict(photos.read_resources(good)) == {"a": b"first", "b": b"second"}
    folder_in_itself = bytearray(good)
    struct.pack_into(">I", folder_in_itself, 20 + 10, 0)
    for content in (b"", b"PK\3\4" + good[4:], good[:30], bytes(folder_in_itself), good[:20] + b"\xff" * 60):
        with pytest.raises(ValueError, match="resource file"):
            list(photos.read_resources(content))
