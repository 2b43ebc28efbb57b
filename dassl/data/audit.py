"""A look at the data of a run before it trains: what would make its result mean something else than it seems to.

Cheap enough for every run: file sizes of all images, contents of those of equal size, the pixels of a few, and the
looks of as many as there is time for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dassl.utils.tools import DEEP_MODES, read_image

from .near_copies import near_copies

logger = logging.getLogger(__name__)

PICTURES = 48  # of which pixels are looked at, spread evenly
SECONDS = 0.5  # after which it ends with what it has seen
LONG_NAME = 100  # letters
CLIPPED = 0.95  # share of the values that are 0 or 255
DARK = 1 / 8  # of the range of a deep image, below which all its values are

ODD = {
    "constant images": "have a single colour",
    "dark images": "use less than an eighth of the range of their type and become nearly black: scale them",
    "clipped images": "are black, white and little between, as if values had been cut off",
}


class Finding(NamedTuple):
    """One thing to know about the data: level warning or note."""

    level: str
    check: str
    text: str


class Audit(NamedTuple):
    """Findings, and the number of images whose pixels, contents and looks were looked at."""

    findings: list[Finding]
    pictures: int
    compared: int
    looks: int

    def plain(self) -> dict[str, Any]:
        """As plain values, for result.json."""
        return {**self._asdict(), "findings": [finding._asdict() for finding in self.findings]}


def audit_data(dataset: Any, shots: int = 0, split: str = "test") -> Audit:
    """Look over the items of a data set; log what was found, as a table.

    Args:
        dataset: with train_x and `split`, lists of items, and classnames.
        shots: DATASET.NUM_SHOTS, 0 for all.
        split: that is evaluated, test or val; no image of the other is read.

    Raises:
        ValueError: one of the images looked at cannot be used.
    """
    until = time.monotonic() + SECONDS
    train, test = (_items(getattr(dataset, name, None)) for name in ("train_x", split))
    findings = class_findings(list(getattr(dataset, "classnames", None) or ()))
    if shots > 0:
        findings += shot_findings(train, shots)
    paths = list(dict.fromkeys(item.impath for item in (*train, *test)))
    seen, found = picture_findings(paths[:: max(1, len(paths) // PICTURES)], until)
    findings += found
    same, compared = same_pictures(train, test, until)
    if same:
        text = f"{len(same)} {split} images are training images too, byte for byte, such as {same[0]}"
        findings.append(Finding("warning", f"train and {split}", text))
    found, looks = near_findings(train, test, until, same, split)
    findings += found
    for finding in findings:
        level = logging.WARNING if finding.level == "warning" else logging.INFO
        logger.log(level, "Data, %s: %s", finding.check, finding.text)
    return Audit(findings, seen, compared, looks)


def class_findings(names: Sequence[str]) -> list[Finding]:
    """A single class, names that stand for several classes, and names too long for a prompt."""
    findings = []
    if len(names) == 1:
        text = f"there is one class, {names[0]!r}: accuracy is 100 % for any model"
        findings.append(Finding("warning", "classes", text))
    spoken = Counter(" ".join(name.replace("_", " ").lower().split()) for name in names)
    twice = [repr(name) for name, number in spoken.items() if number > 1]
    if twice:
        text = f"{len(twice)} class names stand for more than one class: {_some(twice)}"
        findings.append(Finding("warning", "class names", text))
    long = [f"{name[:40]}..." for name in names if len(name) > LONG_NAME]
    if long:
        text = f"{len(long)} class names have more than {LONG_NAME} letters, such as {_some(long)}"
        findings.append(Finding("warning", "class names", text))
    return findings


def shot_findings(train: Sequence[Any], shots: int) -> list[Finding]:
    """Classes with fewer training images than asked for."""
    numbers = Counter(item.label for item in train)
    names = {item.label: item.classname for item in train}
    few = [f"{names[label]} ({number})" for label, number in sorted(numbers.items()) if number < shots]
    if not few:
        return []
    text = f"{len(few)} of {len(numbers)} classes have fewer training images than the {shots} shots asked for"
    return [Finding("warning", "shots", f"{text}: {_some(few)}")]


def near_findings(
    train: Sequence[Any],
    test: Sequence[Any],
    until: float = float("inf"),
    known: Iterable[str] = (),
    split: str = "test",
) -> tuple[list[Finding], int]:
    """Test images other than the `known` ones that look as a training image does; and how many images were read."""
    near, looks = near_copies([item.impath for item in train], [item.impath for item in test], until)
    near = [pair for pair in near if pair.partition(" (as ")[0] not in set(known)]
    if not near:
        return [], looks
    text = f"{len(near)} of the {split} images looked at are nearly a training image, such as {near[0]}"
    return [Finding("warning", f"train and {split}", text)], looks


def picture_findings(paths: Iterable[str], until: float = float("inf")) -> tuple[int, list[Finding]]:
    """Decode images and look at their depth, at constant ones and at those whose values were cut off.

    Returns:
        How many were decoded until the moment `until` (of time.monotonic()), and the findings.
    """
    modes, seen = Counter[str](), 0
    example: dict[str, str] = {}
    odd: dict[str, list[str]] = {check: [] for check in ODD}
    for path in paths:
        if time.monotonic() > until:
            break
        if not os.path.isfile(path):
            continue
        seen += 1
        values = np.asarray(read_image(path))
        with Image.open(path) as image:
            modes[image.mode] += 1
            example.setdefault(image.mode, path)
            deep = image.mode in DEEP_MODES
        extremes = values.reshape(-1, 3)
        if (extremes.max(axis=0) == extremes.min(axis=0)).all():
            odd["constant images"].append(path)
        elif deep and values.max() < 255 * DARK:
            odd["dark images"].append(path)
        elif ((values == 0) | (values == 255)).mean() > CLIPPED:
            odd["clipped images"].append(path)
    findings = [
        Finding("note", "depth", f"{number} of {seen} images are {DEEP_MODES[mode]}, such as {example[mode]}")
        for mode, number in modes.items()
        if mode in DEEP_MODES
    ]
    for check, found in odd.items():
        if found:
            level = "note" if check == "clipped images" else "warning"  # drawings may be so
            findings.append(Finding(level, check, f"{len(found)} of {seen} images {ODD[check]}, such as {found[0]}"))
    return seen, findings


def same_pictures(train: Sequence[Any], test: Sequence[Any], until: float = float("inf")) -> tuple[list[str], int]:
    """Files of test images whose content a training image has; only files of equal size are read.

    Returns:
        Their paths, and the number of files whose size or content was looked at until the moment `until`.
    """
    sizes: dict[int, list[str]] = defaultdict(list)
    compared, found = 0, []
    sums: dict[str, bytes] = {}

    def content(path: str) -> bytes:
        if path not in sums:
            with open(path, "rb") as file:
                sums[path] = hashlib.sha256(file.read()).digest()
        return sums[path]

    for path in dict.fromkeys(item.impath for item in train):
        if os.path.isfile(path):
            sizes[os.path.getsize(path)].append(path)
    for path in dict.fromkeys(item.impath for item in test):
        if time.monotonic() > until:
            break
        if not os.path.isfile(path):
            continue
        compared += 1
        others = sizes.get(os.path.getsize(path), ())
        if any(other == path or content(other) == content(path) for other in others):
            found.append(path)
    return found, compared


def _items(items: Any) -> list[Any]:
    return [item for item in items if isinstance(getattr(item, "impath", None), str)] if isinstance(items, list) else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
