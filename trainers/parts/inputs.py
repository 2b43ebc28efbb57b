"""Keys of INPUT that the backbone decides: image size, resizing and pixel statistics."""

from __future__ import annotations

from typing import Any

import clip
from trainers.parts.engine import BACKBONE_INPUTS, CfgNode

__all__ = ["backbone_input", "check_input", "input_options"]


def input_options(found: clip.Input) -> dict[str, Any]:
    """Preprocessing of a checkpoint in the config's keys."""
    return {
        "SIZE": (found.side, found.side),
        "INTERPOLATION": found.interpolation,
        "RESIZE": found.resize,
        "PIXEL_MEAN": list(found.mean),
        "PIXEL_STD": list(found.std),
    }


def backbone_input(name: str) -> dict[str, Any] | None:
    """Keys of INPUT by MODEL.BACKBONE.NAME; None if it is not a CLIP."""
    found = clip.input_of(name) if name else None
    return None if found is None else input_options(found)


BACKBONE_INPUTS.append(backbone_input)


def check_input(cfg: CfgNode, side: int, transform: Any = None) -> None:
    """Compare the config with a loaded checkpoint; pixel statistics only where images are normalised.

    Args:
        side: of the images that the model takes.
        transform: from `clip.load`; without it only the size is compared.

    Raises:
        ValueError: they differ; the message has both values.
    """
    wanted = {"SIZE": (side, side)} if transform is None else input_options(clip.Input.of(transform))
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        wanted = {key: value for key, value in wanted.items() if not key.startswith("PIXEL")}
    other = [key for key, value in wanted.items() if not _same(cfg.INPUT[key], value)]
    if other:
        both = "; ".join(f"INPUT.{key} is {cfg.INPUT[key]}, the checkpoint has {wanted[key]}" for key in other)
        raise ValueError(f"{both}: backbone {cfg.MODEL.BACKBONE.NAME} decides if the config leaves them out")


def _same(given: Any, wanted: Any) -> bool:
    """Equality of words, and of lists of numbers to 1e-4, a fortieth of a step of 8-bit pixels."""
    if isinstance(wanted, str):
        return bool(given == wanted)
    return len(given) == len(wanted) and all(abs(one - other) < 1e-4 for one, other in zip(given, wanted))
