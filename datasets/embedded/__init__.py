"""Emoji artwork by independent artists, packed into the repository: 1,592 concepts in 14 styles at 64 x 64 pixels.

`load_style` gives the images of one style, `concepts` the names, `benchmark` the classes and splits.
See docs/embedded.md.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import pack

HERE = Path(__file__).resolve().parent
SEEN_STYLES = ("noto", "noto-v1", "noto-mono", "twemoji", "emojione", "emojione-mono", "fxemoji")
UNSEEN_STYLES = ("openmoji", "openmoji-black", "fluent-flat", "fluent-hc", "fluent-3d", "streamline")
# emojione-v1, an earlier set by the artists of emojione, is share-alike: in no training corpus, and no hold-out either.
STYLES = (*SEEN_STYLES, "emojione-v1", *UNSEEN_STYLES)


class Concept(NamedTuple):
    """One emoji: code points in hex, CLDR label, keywords, Unicode group and subgroup."""

    code: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """All concepts; a concept id is the position in this tuple."""
    rows = json.loads((HERE / "concepts.json").read_text(encoding="utf-8"))
    return tuple(Concept(code, label, tuple(tags), group, subgroup) for code, label, tags, group, subgroup in rows)


@functools.cache
def concept_ids() -> dict[str, int]:
    """Code -> concept id."""
    return {concept.code: index for index, concept in enumerate(concepts())}


@functools.cache
def benchmark() -> dict:
    """Class definitions (`groups`, `fine`: class name -> codes) and splits (`split`: code -> train, val or test)."""
    return json.loads((HERE / "benchmark.json").read_text(encoding="utf-8"))


def style_path(name: str) -> Path:
    """Packed file of a style.

    Raises:
        KeyError: no such style.
    """
    if name not in STYLES:
        raise KeyError(f"unknown style {name!r}; known are {', '.join(STYLES)}")
    return HERE / "styles" / f"{name}.xz"


def load_style(name: str, premultiplied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images of one style.

    Args:
        name: one of STYLES.
        premultiplied: colour already multiplied by alpha, which is what compositing wants.

    Returns:
        Concept ids (n,) int64, ascending, and RGBA images (n, 64, 64, 4) uint8.

    Raises:
        KeyError: no such style.
        FileNotFoundError: the packed file is missing.
        ValueError: the packed file is damaged.
    """
    return pack.decode(_existing(name), premultiplied)


@functools.cache
def style_concepts(name: str) -> tuple[int, ...]:
    """Ids of the concepts that a style has, ascending. Raises as `load_style`."""
    return tuple(pack.read_concepts(_existing(name)).tolist())


def _existing(name: str) -> Path:
    path = style_path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; restore it or run python -m tools.embedded.build")
    return path
