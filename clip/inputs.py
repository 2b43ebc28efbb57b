"""The images a checkpoint takes: side, pixel statistics and interpolation, without building the model if possible."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from clip.checkpoints import PIXEL_MEAN, PIXEL_STD, load_checkpoint
from clip.download import MODELS
from clip.towers.configurations import HUGGING_FACE, OPEN_CLIP, beside, hugging_face_pixels, open_clip_pixels, side_of
from clip.towers.names import HUB, of_hub, open_clip_config

SIDES = {"RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "ViT-L/14@336px": 336}
"""OpenAI's models that take other images than 224 x 224."""


class Input(NamedTuple):
    """Preprocessing of a backbone: shorter side to `side`, centre crop, (pixel - mean) / std for pixels in [0, 1]."""

    side: int = 224
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, transform: Any) -> Input:
        """Preprocessing of :func:`clip.load`."""
        resize, normalize = transform.transforms[0], transform.transforms[-1]
        return cls(resize.size, tuple(normalize.mean), tuple(normalize.std), resize.interpolation.value)


def input_of(name_or_path: str | Path) -> Input | None:
    """Preprocessing of a model's name or checkpoint file; of the Hub the configuration is fetched, and nothing else.

    Returns:
        None for a name that is unknown, or a file that is missing or no CLIP: loading it says so.
    """
    from clip.api import EMBEDDED  # clip.api builds on this module

    name = str(name_or_path)
    if name in MODELS:
        return Input(SIDES.get(name, 224))
    path = Path(EMBEDDED.get(name, name)).expanduser()
    try:
        if name.startswith(HUB):
            return _input_of_folder(of_hub(name, weights=False).path)
        if not path.exists() and (config := open_clip_config(name)):
            return Input(side_of(config) or 224, **open_clip_pixels(config))
        stat = path.stat()
        return _input_of_file(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError, ImportError):
        return None


@lru_cache(maxsize=32)
def _input_of_file(path: Path, changed: int, size: int) -> Input:
    found = _input_of_folder(path) if path.is_dir() else _input_of_header(path)
    if found is None:
        model, info = load_checkpoint(path)
        found = Input(model.visual.input_resolution, info.mean, info.std, info.interpolation)
    return found


def _input_of_folder(folder: Path) -> Input | None:
    """From the configuration in a folder; None where it does not say the size of the images."""
    if config := beside(folder / OPEN_CLIP, OPEN_CLIP):
        pixels = open_clip_pixels(config)
    else:
        config = beside(folder / HUGGING_FACE, HUGGING_FACE) or {}
        pixels = hugging_face_pixels(folder / HUGGING_FACE)
    side = side_of(config)
    return None if side is None else Input(side, **pixels)


def _input_of_header(path: Path) -> Input | None:
    """From the header of a file that `save_model` wrote with a plain vision transformer; None for other files."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, set(file.keys())
            if "quick_gelu" not in metadata or not {"visual.conv1.weight", "visual.positional_embedding"} <= keys:
                return None
            patch = file.get_slice("visual.conv1.weight").get_shape()[-1]
            grid = round((file.get_slice("visual.positional_embedding").get_shape()[0] - 1) ** 0.5)
    except (SafetensorError, OSError):
        return None
    statistics = {key: tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std") if key in metadata}
    return Input(grid * patch, statistics.get("mean", PIXEL_MEAN), statistics.get("std", PIXEL_STD))
