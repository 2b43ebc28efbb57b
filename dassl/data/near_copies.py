"""Images that look alike: copies that were scaled, compressed or saved again, which no sum of their files finds."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dassl.utils.tools import to_rgb

SIDE = 16
STEP = 4  # levels of 255 from a pixel to the next that count; less is noise of compression
BITS = 16  # of 256, in which two signatures of copies differ at most
LEVELS = 3.0  # of 255, by which the pixels of two copies differ at most in the mean


class Looks(NamedTuple):
    """Signatures of K images.

    Attributes:
        paths: K of them.
        bits: (K, 256) float32 of 0 and 1, the signs of the steps from pixel to pixel in 16 rows (a difference hash).
        pixels: (K, 816) float32 from 0 to 255, the image in 16 x 17 pixels.
    """

    paths: list[str]
    bits: np.ndarray
    pixels: np.ndarray


def near_copies(train: Sequence[str], test: Sequence[str], until: float = float("inf")) -> tuple[list[str], int]:
    """Test images that look as a training image does.

    Args:
        train, test: paths; what is not a readable image is left out.
        until: moment of time.monotonic() at which no further image is read. Images of both are read in turn, evenly
            spread, so that some of both are known by then.

    Returns:
        "PATH (as PATH)" for each test image found, and the number of images read.
    """
    found: tuple[list, list] = ([], [])
    for number, path in _in_turn(train, test):
        if time.monotonic() > until:
            break
        pixels = _small(path)
        if pixels is not None:
            found[number].append((path, pixels))
    known, asked = (_looks(entries) for entries in found)
    read = len(known.paths) + len(asked.paths)
    if not (known.paths and asked.paths):
        return [], read
    pairs = []
    for start in range(0, len(asked.paths), 512):  # rows of test images that are compared at a time
        rows = asked.bits[start : start + 512]
        apart = rows @ (1 - known.bits).T + (1 - rows) @ known.bits.T  # (512, K) bits that differ
        for row, column in np.argwhere(apart <= BITS):
            path, other = asked.paths[start + row], known.paths[column]
            if path != other and np.abs(asked.pixels[start + row] - known.pixels[column]).mean() <= LEVELS:
                pairs.append((path, other))
    return [f"{path} (as {other})" for path, other in dict(pairs).items()], read


def _in_turn(*lists: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Entries of several lists, each with the number of its list; the first few are from everywhere in all."""
    rng = random.Random(0)
    places = [
        ((rank + 0.5) / len(paths), number, path)
        for number, paths in enumerate(lists)
        for rank, path in enumerate(rng.sample(paths, len(paths)))
    ]
    return ((number, path) for _, number, path in sorted(places))


def _small(path: str) -> np.ndarray | None:
    """(16, 17, 3) float32 of an image; None if it cannot be read, which is reported elsewhere."""
    if not os.path.isfile(path):
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (4 * SIDE, 4 * SIDE))  # JPEG files are decoded smaller, which is many times faster
            small = to_rgb(image).resize((SIDE + 1, SIDE), Image.Resampling.BILINEAR)
    except Exception:  # noqa: BLE001 - Pillow's decoders raise many kinds of errors for damaged files
        return None
    return np.asarray(small, dtype=np.float32)


def _looks(entries: list[tuple[str, np.ndarray]]) -> Looks:
    pixels = np.stack([small for _, small in entries]) if entries else np.zeros((0, SIDE, SIDE + 1, 3), np.float32)
    grey = pixels.mean(axis=-1)
    bits = (np.diff(grey, axis=-1) > STEP).astype(np.float32).reshape(len(entries), SIDE * SIDE)
    return Looks([path for path, _ in entries], bits, pixels.reshape(len(entries), SIDE * (SIDE + 1) * 3))
