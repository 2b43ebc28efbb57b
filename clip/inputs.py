"""The images and texts a checkpoint takes: side, pixel statistics, context length ..., without building the model if
possible."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torchvision.transforms import Normalize, Resize

from clip.checkpoints import PIXEL_MEAN, PIXEL_STD, info_of_metadata, load_checkpoint
from clip.download import MODELS
from clip.simple_tokenizer import VOCAB_SIZE
from clip.towers.configurations import HUGGING_FACE, OPEN_CLIP, beside, hugging_face_pixels, open_clip_pixels, side_of
from clip.towers.names import HUB, of_hub, open_clip_config
from clip.words import Words

SIDES = {"RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "ViT-L/14@336px": 336}
"""OpenAI's models that take other images than 224 x 224."""
_READ = {"visual.conv1.weight", "visual.positional_embedding", "positional_embedding", "token_embedding.weight"}


class Input(NamedTuple):
    """Preprocessing of a backbone: resized to `side` (the `shortest` side, then a center crop, or both by `squash`),
    (pixel - mean) / std for pixels in [0, 1]; and the length and vocabulary of its texts, 0 where they are not known or
    not those of CLIP's tokenizer."""

    side: int = 224
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    interpolation: str = "bicubic"
    resize: str = "shortest"
    context_length: int = 0
    vocab_size: int = 0

    @property
    def words(self) -> Words:
        """Its tokens."""
        return Words(self.context_length, self.vocab_size)

    @classmethod
    def of(cls, transform: Any) -> Input:
        """Preprocessing of :func:`clip.load`."""
        resize, normalize = (next(filter(kind.__instancecheck__, transform.transforms)) for kind in (Resize, Normalize))
        side, how = (resize.size, "shortest") if isinstance(resize.size, int) else (resize.size[0], "squash")
        return cls(side, tuple(normalize.mean), tuple(normalize.std), resize.interpolation.value, how)


def input_of(name_or_path: str | Path) -> Input | None:
    """Preprocessing of a model's name or checkpoint file; of the Hub the configuration is fetched, and nothing else.

    Returns:
        None for a name that is unknown, or a file that is missing or no CLIP: loading it says so.
    """
    from clip.api import EMBEDDED  # clip.api builds on this module

    name = str(name_or_path)
    if name in MODELS:
        return Input(SIDES.get(name, 224), context_length=77, vocab_size=VOCAB_SIZE)
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
        plain = model.words if type(model.words) is Words else Words(0, 0)
        found = Input(
            model.visual.input_resolution,
            info.mean,
            info.std,
            info.interpolation,
            info.resize,
            plain.context_length,
            plain.vocab_size,
        )
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
            if "quick_gelu" not in metadata or not keys >= _READ:
                return None
            texts = [file.get_slice(name).get_shape()[0] for name in ("positional_embedding", "token_embedding.weight")]
            patch = file.get_slice("visual.conv1.weight").get_shape()[-1]
            grid = round((file.get_slice("visual.positional_embedding").get_shape()[0] - 1) ** 0.5)
    except (SafetensorError, OSError):
        return None
    info = info_of_metadata(metadata)
    return Input(grid * patch, info.mean, info.std, info.interpolation, info.resize, *texts)
