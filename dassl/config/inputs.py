"""INPUT.SIZE, INTERPOLATION, RESIZE, PIXEL_MEAN and PIXEL_STD that a config leaves to the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .defaults import default_config
from .node import CfgNode

KEYS = ("SIZE", "INTERPOLATION", "RESIZE", "PIXEL_MEAN", "PIXEL_STD")

BACKBONE_INPUTS: list[Callable[[str], Mapping[str, Any] | None]] = []
"""Functions from MODEL.BACKBONE.NAME to the values of KEYS, or None for a backbone they do not know."""


def leave_open(cfg: CfgNode) -> None:
    """Empty the KEYS, so that what is still empty after merging is left to the backbone."""
    for key in KEYS:
        cfg.INPUT[key] = type(cfg.INPUT[key])()


def resolve(cfg: CfgNode, otherwise: Mapping[str, Any] | None = None) -> None:
    """Fill what is empty: from the backbone if it is known, else from `otherwise`, else Dassl's defaults."""
    empty = [key for key in KEYS if not cfg.INPUT[key]]
    if not empty:
        return
    known = (find(cfg.MODEL.BACKBONE.NAME) for find in BACKBONE_INPUTS)
    values = next((found for found in known if found is not None), otherwise or default_config().INPUT)
    for key in empty:
        cfg.INPUT[key] = type(cfg.INPUT[key])(values[key])
