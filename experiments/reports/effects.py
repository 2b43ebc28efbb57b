"""The effect of one method over another on the same test images, with an interval, and the verdict that follows."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 4000
_NUMBERS = 8_000_000  # weights held at a time
HOLDS, CONTRADICTED, UNCLEAR = "holds", "contradicted", "cannot tell"


class Effect(NamedTuple):
    """A difference of accuracies in points, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: int
    images: int


def effect(differences: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> Effect:
    """Mean difference and its bootstrap interval: test images and seeds are drawn again with replacement.

    Images are drawn once for all seeds, which are tested on the same ones. A few seeds drawn again spread too little:
    their weights are stretched by t / z * sqrt(S / (S - 1)), which makes the interval about that of Student's t where
    images do not matter (Hesterberg, The American Statistician 69, 2015, "expanded percentiles").

    Args:
        differences: for each data set (S, I) points of seed by image: 100 where only the first method is right, -100
            where only the second is, else 0. All data sets have the same number of seeds.

    Raises:
        ValueError: no data sets, no seeds or images, or different numbers of seeds.
    """
    shapes = [np.shape(array) for array in differences]
    if not shapes or any(len(shape) != 2 or 0 in shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"expected arrays of the same number of seeds by images, got shapes {shapes}")
    rng, s = np.random.default_rng(seed), shapes[0][0]
    z, stretch = stats.norm.ppf(0.5 + LEVEL / 2), 0.0
    if s > 1:
        stretch = float(stats.t.ppf(0.5 + LEVEL / 2, s - 1)) / z * math.sqrt(s / (s - 1))
    chunk = max(1, _NUMBERS // max(shape[1] for shape in shapes))
    parts = []
    for start in range(0, draws, chunk):
        n = min(chunk, draws - start)
        weights = 1 / s + stretch * (rng.multinomial(s, np.full(s, 1 / s), n) / s - 1 / s)
        total = np.zeros(n)
        for array in differences:
            images = array.shape[1]
            picked = rng.multinomial(images, np.full(images, 1 / images), n) / images
            total += np.einsum("ns,ns->n", weights, picked @ np.asarray(array, dtype=float).T)
        parts.append(total / len(differences))
    low, high = np.quantile(np.concatenate(parts), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    mean = float(np.mean([np.mean(array) for array in differences]))
    return Effect(mean, float(low), float(high), s, sum(shape[1] for shape in shapes))


def verdict(found: Effect) -> str:
    """`holds` if the whole interval is above 0, `contradicted` if it is below, else `cannot tell`."""
    return HOLDS if found.low > 0 else CONTRADICTED if found.high < 0 else UNCLEAR


def correct(path: Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Image and label of every row of predictions.csv, sorted, and (I,) 1 where the prediction is right.

    Raises:
        OSError: there is no such file.
        ValueError: it lacks a column, or has no rows.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"path", "label", "prediction"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: expected the columns path, label and prediction, got {reader.fieldnames}")
        rows = sorted((row["path"], row["label"], row["prediction"]) for row in reader)
    if not rows:
        raise ValueError(f"{path} has no predictions")
    return [row[:2] for row in rows], np.array([float(row[1] == row[2]) for row in rows])


def difference(better: Sequence[Path], than: Sequence[Path]) -> np.ndarray:
    """(S, I) points by which each image is in favor of `better`, from the predictions.csv of each seed.

    A list of one file, of a method without seeds, is set against every file of the other.

    Raises:
        OSError: a file is missing.
        ValueError: the files are not of the same images with the same labels, or the numbers of seeds differ.
    """
    columns = []
    names = None
    for files in (better, than):
        rows = []
        for path in files:
            images, right = correct(path)
            if names is not None and images != names:
                raise ValueError(f"{path} and {better[0]} are not of the same test images and labels")
            names = images
            rows.append(right)
        columns.append(np.array(rows))
    if len(columns[0]) != len(columns[1]) and 1 not in (len(columns[0]), len(columns[1])):
        raise ValueError(f"{len(better)} and {len(than)} seeds cannot be paired")
    return 100 * (columns[0] - columns[1])
