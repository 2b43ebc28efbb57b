"""Archives that are not folders of images: the binary files of CIFAR, and ImageNet's tar archives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.prepare.photos import gcompris, tuxpaint
from datasets.prepare.splits import read_lines, read_mat
from datasets.prepare.unpack import clear_faults, entries, free_space, unpack, walk

__all__ = ["CONVERTERS", "cifar", "imagenet_train", "imagenet_val"]

_SIDE = 32


def cifar(archive: Path, folder: Path, home: Path, quiet: bool = False) -> None:
    """Write the images of a binary version of CIFAR to images/{train,test}/<class>/<number>.png, numbered as stored.

    A record is its label (two of them for CIFAR-100, the fine one second) and 3 x 32 x 32 bytes.

    Raises:
        ValueError: the archive is not such a version.
    """
    kinds = {"cifar-10-batches-bin": (1, "batches.meta.txt"), "cifar-100-binary": (2, "fine_label_names.txt")}
    tops = {entry.path.split("/")[0] for entry in entries(archive)}
    top = next((name for name in kinds if name in tops), None)
    if top is None:
        raise ValueError(f"{archive.name} has none of {', '.join(kinds)}, so it is not a binary version of CIFAR")
    labels, names_file = kinds[top]
    raw = folder / "raw"
    unpack(archive, {top: "raw"}, folder, quiet=True)
    names = [line.strip() for line in read_lines(raw / names_file)]
    train = [raw / "train.bin"] if labels == 2 else [raw / f"data_batch_{number}.bin" for number in range(1, 6)]
    test = raw / ("test.bin" if labels == 2 else "test_batch.bin")
    for part, files in (("train", train), ("test", [test])):
        number = 0
        for file in files:
            if not file.is_file():
                raise ValueError(f"{archive.name} has no {file.name}")
            content = np.frombuffer(file.read_bytes(), dtype=np.uint8)
            if len(content) % (labels + 3 * _SIDE**2):
                raise ValueError(f"{file.name} of {archive.name} has {len(content)} bytes, no whole number of images")
            for record in tqdm(content.reshape(-1, labels + 3 * _SIDE**2), desc=file.name, disable=quiet):
                label = int(record[labels - 1])
                if label >= len(names):
                    raise ValueError(f"{file.name} has label {label}, but there are {len(names)} classes")
                place = folder / "images" / part / names[label] / f"{number:05d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(record[labels:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)).save(place)
                number += 1
    shutil.rmtree(raw)


def imagenet_train(archive: Path, folder: Path, home: Path, quiet: bool = False) -> None:
    """Write the training images of ILSVRC 2012 to images/train/<class folder>/: one tar archive per class in one.

    Raises:
        ValueError: the archive is damaged, or has something else than archives.
    """
    found = entries(archive)
    free_space(folder, sum(entry.size for entry in found), archive.name)
    inner = folder / "class.tar"
    for entry, opened in tqdm(walk(archive), total=len(found), unit=" classes", desc=archive.name, disable=quiet):
        wnid = entry.path.removesuffix(".tar")
        if entry.kind != "file" or "/" in wnid or wnid == entry.path:
            raise ValueError(f"{archive.name} has {entry.path!r}, expected one archive per class")
        with clear_faults(archive.name), opened() as source, inner.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        try:
            unpack(inner, {".": f"images/train/{wnid}"}, folder, quiet=True)
        except ValueError as err:
            raise ValueError(f"{entry.path} in {archive.name}: {err}") from err
    inner.unlink(missing_ok=True)


def imagenet_val(archive: Path, folder: Path, home: Path, quiet: bool = False) -> None:
    """Write the validation images of ILSVRC 2012 to images/val/<class folder>/, by the lists of the devkit.

    Raises:
        FileNotFoundError: the devkit is not unpacked yet. ValueError: it does not fit the images.
    """
    lists = home / "ILSVRC2012_devkit_t12" / "data"
    if not lists.is_dir():
        raise FileNotFoundError(
            f'there is no "{lists}", which tells the classes of the validation images: ILSVRC2012_devkit_t12.tar.gz is '
            "needed as well"
        )
    synsets = read_mat(lists / "meta.mat", "synsets").ravel()
    folders = {int(row["ILSVRC2012_ID"].item()): str(row["WNID"].item()) for row in synsets}
    truth = [int(line) for line in read_lines(lists / "ILSVRC2012_validation_ground_truth.txt")]
    unpack(archive, {".": "flat"}, folder, quiet=quiet)
    images = sorted(path for path in (folder / "flat").rglob("*") if path.is_file())
    if len(images) != len(truth):
        raise ValueError(f"{archive.name} has {len(images)} images, but the devkit lists {len(truth)}")
    for image, number in zip(images, truth):
        if number not in folders:
            raise ValueError(f"the devkit gives {image.name} the class {number}, which meta.mat does not have")
        place = folder / "images" / "val" / folders[number] / image.name
        place.parent.mkdir(parents=True, exist_ok=True)
        image.rename(place)
    shutil.rmtree(folder / "flat")


CONVERTERS: Mapping[str, Callable[..., None]] = {
    "cifar": cifar,
    "gcompris": gcompris,
    "imagenet_train": imagenet_train,
    "imagenet_val": imagenet_val,
    "tuxpaint": tuxpaint,
}
"""Name in a Source -> function(archive, new folder, the data set's folder, quiet)."""
