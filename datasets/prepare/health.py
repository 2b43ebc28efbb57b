"""Health check of the folder of a standard data set, with remedies. datasets.doctor prints it."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dassl.data.audit import near_findings, picture_findings
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.data.fingerprint import classnames_hash, split_hash
from dassl.utils import read_image
from datasets.prepare import SAMPLES
from datasets.prepare.catalog import CATALOG, DatasetInfo, prepare_command
from datasets.prepare.sources import SOURCES, checksums
from datasets.prepare.splits import Splits
from datasets.standard import differences, picks_hash

__all__ = ["Finding", "Report", "check_decoding", "check_duplicates", "check_files", "examine"]

LOOKING = 2.0  # seconds, without --full, for copies that were saved anew
LARGE = 200_000
"""From so many images on, duplicates are looked for on request only."""
ELSEWHERE: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Caltech101": (("caltech101", "caltech-101"),),
    "OxfordPets": (("oxford-iiit-pet", "oxford_pets"),),
    "OxfordFlowers": (("flowers-102", "oxford_flowers"),),
    "FGVCAircraft": (("fgvc-aircraft-2013b/data", "fgvc_aircraft"),),
    "SUN397": (("SUN397", "sun397/SUN397"),),
    "ImageNetV2": (
        (
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2/imagenetv2-matched-frequency-format-val",
        ),
    ),
    "ImageNetSketch": (("sketch", "imagenet-sketch/images"),),
    "ImageNetA": (("imagenet-a", "imagenet-adversarial/imagenet-a"),),
    "ImageNetR": (("imagenet-r", "imagenet-rendition/imagenet-r"),),
}
"""Folders that torchvision or the archives use for the same images, and the expected ones, below the data root."""


class Finding(NamedTuple):
    """One thing that is wrong: level error or warning, or a note; what to do against it."""

    level: str
    check: str
    text: str
    fix: str = ""


@dataclass
class Report:
    """Findings in the folder of a data set.

    Attributes:
        counts: images per split, {} if the items could not be read.
        split: published, self-made or unrecognised; "" if not read.
        hashes: sha256 (or git) of the split file, of class names, of the 16-shot picks of seed 1, of each split.
        decoded: images that were opened and decoded.
        compared: images whose content was compared between training and test.
    """

    name: str
    folder: str
    counts: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    split: str = ""
    hashes: dict[str, str] = field(default_factory=dict)
    decoded: int = 0
    compared: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, level: str, check: str, text: str, fix: str = "") -> None:
        self.findings.append(Finding(level, check, text, fix))

    def count(self, level: str) -> int:
        """Number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def ok(self) -> bool:
        """True if there are no errors."""
        return not self.count("error")

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "findings": [finding._asdict() for finding in self.findings], "ok": self.ok}


def examine(
    name: str, root: str | os.PathLike[str], full: bool = False, samples: int = SAMPLES, quiet: bool = True
) -> Report:
    """Look over the folder of a data set; nothing is written.

    Args:
        name: of the catalogue.
        root: the data root.
        full: decode every image, and look for duplicates in large data sets as well.
        samples: images to decode otherwise, spread evenly over all of them.
    """
    info = CATALOG[name]
    home = Path(os.path.abspath(os.path.expanduser(root)))
    folder = home / info.folder
    report = Report(name, str(folder))
    try:
        if not _check_layout(report, info, home, folder):
            return report
        _check_files(report, info, folder)
        splits = _check_items(report, info, home, folder)
        if splits is not None:
            paths = dict.fromkeys(item.impath for items in splits for item in items)
            sizes = check_files(report, paths, lambda missing: _again(info, home, missing))
            check_decoding(report, list(sizes), full, samples, quiet, lambda damaged: _again(info, home, damaged))
            check_duplicates(report, splits, sizes, full)
    except PermissionError as err:
        report.add("error", "layout", f'"{err.filename}" may not be read', f"chmod -R u+rX {_quote(folder)}")
    return report


def _check_layout(report: Report, info: DatasetInfo, home: Path, folder: Path) -> bool:
    """Folders and files that the reader needs; False if there is no point in going on."""
    fetch = prepare_command(info.name, str(home))
    if not home.is_dir():
        report.add("error", "layout", f'there is no data root "{home}"', "give another --root, or make it")
        return False
    if not folder.is_dir():
        fix, seen = fetch, ""
        alike = tuple((other, info.folder) for other in _alike(folder))
        for other, place in (*ELSEWHERE.get(info.name, ()), *alike):
            if (home / other).is_dir():
                seen, fix = f', but there is "{other}"', f"ln -s {_quote(home / other)} {_quote(home / place)}"
                if "/" in place:
                    fix = f"mkdir {_quote(folder)} && {fix}"
                break
        report.add("error", "layout", f'there is no folder "{info.folder}" in the data root{seen}', fix)
        return False
    wanted = [info.images] if info.images and not any(part.startswith(info.images) for part in info.layout) else []
    for part in (*wanted, *info.layout):
        path = folder / part
        if part == "classnames.txt" and not path.exists() and (home / "imagenet" / part).is_file():
            continue  # readers take it from there
        if path.is_dir() and not any(path.iterdir()):
            report.add("error", "layout", f'"{part}" is empty', fetch)
        elif not path.exists():
            found = _find_below(folder, Path(part).name)
            text = f'there is no "{part}"' + (f', but there is "{found.relative_to(folder)}"' if found else "")
            report.add("error", "layout", text, f"mv {_quote(found)} {_quote(path)}" if found else fetch)
    if info.split_file and not (folder / info.split_file).is_file():
        if (folder / info.made_split).is_file():
            text = f"the split was made on this machine ({info.made_split}): results cannot be compared with others'"
            report.add("warning", "split", text, fetch)
        else:
            report.add("error", "split", f'there is no split file "{info.split_file}"', fetch)
    return report.ok


def _check_files(report: Report, info: DatasetInfo, folder: Path) -> None:
    """Checksums of split file and class names."""
    for source in SOURCES[info.name]:
        path = folder / source.file
        if source.role != "names" or not path.is_file():
            continue
        (kind, known), *_ = source.checks.items() or [("sha256", "")]
        report.hashes[source.file] = found = checksums(path, (kind,))[kind]
        if not known:
            report.add("note", "split", f"{source.file}: no checksum known; {kind} {found}")
        elif found != known and source.file != info.split_file:
            text = f"{source.file} is not the published one ({kind} {found}, expected {known}): class names may differ"
            report.add("error", "class names", text, _replace(info, folder.parent, source.file))


def _check_items(report: Report, info: DatasetInfo, home: Path, folder: Path) -> Splits | None:
    """Counts, class names and hashes of what the reader reads."""
    try:
        splits, origin, items_root = _read(info, folder)
    except (OSError, ValueError, ImportError) as err:
        if isinstance(err, PermissionError):
            raise
        report.add("error", "items", str(err), "" if isinstance(err, ImportError) else _anew(info, home))
        return None
    train, val, test = splits
    report.counts = {"train": len(train), "val": len(val), "test": len(test)}
    names = dict(sorted({item.label: item.classname for item in train}.items()))
    report.classes = len(names)
    report.hashes["class names"] = classnames_hash(list(names.values()))
    for part, items in zip(report.counts, splits):
        report.hashes[f"{part} items"] = split_hash(items, items_root)
    if info.picks_sha256:
        report.hashes["16-shot picks of seed 1"] = picks_hash(train, val, items_root)
    odd = differences(info, train, val, test, root=items_root)
    report.split = origin or ("unrecognised" if odd else "published")
    level = "warning" if origin else "error"
    for text in odd:
        report.add(level, "split", f"not the published data: {text}", "" if origin else _anew(info, home))
    known = dict(next((source.checks for source in SOURCES[info.name] if source.file == info.split_file), {}))
    if not odd and not origin and known and report.hashes.get(info.split_file) not in known.values():
        text = f"{info.split_file} has other bytes than known, but counts, class names and few-shot picks are right"
        report.add("note", "split", text)
    return splits


def _read(info: DatasetInfo, folder: Path) -> tuple[Splits, str, str]:
    """Items by the reader, without its check that all images are there; where the split comes from; their folder."""
    reader = DATASET_REGISTRY.get(info.name)
    instance = reader.__new__(reader)  # not built: that ends at the first error
    instance.source, instance.items_root = prepare_command(info.name), str(folder / info.images)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the report says what the reader would warn of
    try:
        return instance.read_items(folder), instance.split_origin, instance.items_root
    finally:
        logging.disable(level)


def check_files(report: Report, paths: Iterable[str], fix: Callable[[Sequence[str]], str]) -> dict[str, int]:
    """Path -> bytes of the images that are there; says which are missing, with `fix(missing)` as what to do."""
    sizes: dict[str, int] = {}
    missing: list[str] = []
    for path in paths:
        try:
            sizes[path] = os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            missing.append(path)
    if missing:
        text = (
            f"{len(missing)} of {len(missing) + len(sizes)} images are missing: {_some(missing, Path(report.folder))}"
        )
        alike = next(iter(_alike(Path(missing[0]))), None)
        if alike:
            text += f'. There is "{alike}": names of files were changed'
        report.add("error", "images", text, fix(missing))
    return sizes


def check_decoding(
    report: Report, paths: Sequence[str], full: bool, samples: int, quiet: bool, fix: Callable[[Sequence[str]], str]
) -> None:
    """Decode all images or a sample of them; `fix(damaged)` is what to do."""
    if not full and len(paths) > samples:
        paths = [paths[index * len(paths) // samples] for index in range(samples)]
    damaged = []
    for path in tqdm(paths, desc=f"{report.name}: decoding", unit=" images", disable=quiet):
        try:
            read_image(path)
        except ValueError:
            damaged.append(path)
    report.decoded = len(paths)
    whole = [path for path in paths if path not in damaged]
    for finding in picture_findings(whole[:: max(1, len(whole) // samples)])[1]:
        report.add(*finding)
    if damaged:
        text = f"{len(damaged)} of {len(paths)} images cannot be decoded: {_some(damaged, Path(report.folder))}"
        report.add("error", "images", text, fix(damaged))


def check_duplicates(report: Report, splits: Splits, sizes: Mapping[str, int], full: bool) -> None:
    """The same image in training and test: by path, and by content."""
    train, _, test = splits
    if train is test:
        return
    there = {item.impath for item in train}
    both = list(dict.fromkeys(item.impath for item in test if item.impath in there))
    if both:
        text = f"{len(both)} images are in training and in test: {_some(both, Path(report.folder))}"
        report.add("error", "duplicates", text, "the split is broken; fetch the published split file")
    if len(sizes) >= LARGE and not full:
        report.add("note", "duplicates", f"contents of {len(sizes)} images were not compared; --full does")
        return
    contents = _contents(train, sizes, {sizes[item.impath] for item in test if item.impath in sizes})
    known: dict[str, str] = {}
    for path, digest in contents:
        report.compared += 1
        known.setdefault(digest, path)
    pairs, twins = [], set(both)
    for path, digest in _contents(test, sizes, {sizes[path] for path in known.values()}):
        report.compared += 1
        if digest in known and path not in there:
            twins.add(path)
            pairs.append(f"{os.path.relpath(known[digest], report.folder)} = {os.path.relpath(path, report.folder)}")
    if pairs:
        published = report.split == "published"
        text = f"{len(pairs)} test images have the content of a training image: {'; '.join(pairs[:3])}"
        fix = "none: the published data is so" if published else "leave them out of one of the two"
        report.add("warning", "duplicates", text, fix)
    until = math.inf if full else time.monotonic() + LOOKING
    for finding in near_findings(train, test, until, twins)[0]:
        report.add(*finding, "look at them, and leave them out of one of the two")


def _contents(items: Sequence[Datum], sizes: Mapping[str, int], wanted: set[int]) -> Iterator[tuple[str, str]]:
    """Path and hash of the content of the images that have one of the wanted sizes."""
    for item in items:
        if sizes.get(item.impath) in wanted:
            with open(item.impath, "rb") as file:
                yield item.impath, hashlib.sha256(file.read()).hexdigest()


def _anew(info: DatasetInfo, home: Path) -> str:
    """Command that fetches the items again: the split file where there is one, else the images and lists."""
    if info.split_file:
        made = home / info.folder / info.made_split
        official = home / info.folder / info.split_file
        return _replace(info, home, info.made_split if made.is_file() and not official.is_file() else info.split_file)
    return _again(info, home, [])


def _again(info: DatasetInfo, home: Path, paths: Sequence[str]) -> str:
    """Instruction to fetch the images again: only whole folders are put in place, and never over existing ones."""
    folder = home / info.folder
    tops = {os.path.relpath(path, folder).split(os.sep)[0] for path in paths} if not info.images else {info.images}
    moves = [f"mv {_quote(folder / top)} {_quote(folder / f'{top}.old')}" for top in sorted(tops)]
    return " && ".join([*moves, prepare_command(info.name, str(home))])


def _replace(info: DatasetInfo, home: Path, file: str) -> str:
    """Instruction to replace a file with the published one."""
    path = home / info.folder / file
    return f"mv {_quote(path)} {_quote(path.with_name(f'{file}.old'))} && {prepare_command(info.name, str(home))}"


def _find_below(folder: Path, name: str) -> Path | None:
    """A file or folder of this name (in any case) up to three levels below `folder`."""
    level = [folder]
    for _ in range(3):
        inner: list[Path] = []
        for path in level:
            for child in sorted(path.iterdir())[:2000]:
                if child.name.lower() == name.lower():
                    return child
                if child.is_dir() and not child.name.startswith("."):
                    inner.append(child)
        level = inner[:500]
    return None


def _alike(path: Path) -> list[str]:
    """Names beside `path` that differ from its name in case, dashes or the suffix only."""

    def plain(name: str) -> str:
        return os.path.splitext(name.lower())[0].replace("-", "").replace("_", "")

    if not path.parent.is_dir():
        return []
    return [name for name in sorted(os.listdir(path.parent)) if name != path.name and plain(name) == plain(path.name)]


def _some(paths: Sequence[str], folder: Path) -> str:
    shown = ", ".join(os.path.relpath(path, folder) for path in paths[:3])
    return f"{shown}, ..." if len(paths) > 3 else shown


def _quote(path: Path) -> str:
    return shlex.quote(str(path))
