"""The answer about one picture."""

from __future__ import annotations

from typing import NamedTuple


class Prediction(NamedTuple):
    """Classes of one picture.

    Attributes:
        source: path of the picture, or its place among the pictures as text where it has none.
        label: the most probable class; "" if the picture could not be read.
        probability: of the label, in [0, 1].
        top: the most probable classes with their probabilities, falling.
        error: why the picture could not be read; "" if it was.
    """

    source: str
    label: str = ""
    probability: float = 0.0
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
