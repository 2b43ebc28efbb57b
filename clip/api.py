"""The public functions of the package: names of models, loading, tokenizing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from clip.build import build_model
from clip.checkpoints import CheckpointInfo, load_checkpoint, save_model
from clip.download import MODELS, download
from clip.model import CLIP, convert_weights
from clip.towers.names import FORMS, HUB, Named, of_hub, of_open_clip, similar_names
from clip.words import TextTooLong, tokenize

__all__ = ["TextTooLong", "available_models", "build_model", "convert_weights", "load", "save_model", "tokenize"]

_WEIGHTS = Path(__file__).parent / "weights"
EMBEDDED = {
    "emoji-ViT-S/8": _WEIGHTS / "emoji_vit_s8.safetensors",
    "emoji_vit_s8_tokens": _WEIGHTS / "emoji_vit_s8_tokens.safetensors",
}
"""Name -> file of the models that come with the package."""


def available_models() -> list[str]:
    """Names :func:`load` takes: OpenAI's published models and those that come with the package."""
    return [*MODELS, *EMBEDDED]


def load(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    jit: bool = False,
    download_root: str | Path | None = None,
    quick_gelu: bool | None = None,
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """Loads a CLIP. No code of the file is executed, whatever its kind.

    Args:
        name_or_path: a name from :func:`available_models`, ``ARCHITECTURE/TAG`` or ``ARCHITECTURE/FILE`` of open_clip,
            ``hf-hub:OWNER/NAME``, a checkpoint file, or a folder with weights and their configuration.
        device: where the model goes.
        jit: accepted for compatibility and ignored; TorchScript is never run.
        download_root: folder of downloaded files; ``~/.cache/clip`` when None.
        quick_gelu: activation of a file that does not tell it; see :mod:`clip.checkpoints` for the rule.

    Returns:
        The model in evaluation mode, fp32 on every device, and the transform from a PIL image to its (3, side, side)
        input.

    Raises:
        ValueError: an unknown name, or a file that cannot be used.
        FileNotFoundError: no file at the path, or the package's own weights are missing.
        ConnectionError: the weights cannot be fetched; the message says where to put them by hand.
        ImportError: the backbone needs a package that is not installed.
    """
    found = find_backbone(name_or_path, download_root)
    model, info = load_checkpoint(found.path, quick_gelu, found.config, found.name)
    return model.to(device), preprocessing(model.visual.input_resolution, info)


def find_checkpoint(name_or_path: str | Path, download_root: str | Path | None = None) -> Path:
    """The file or folder that a name or path stands for, downloaded if it must be; raises as :func:`load` does."""
    return find_backbone(name_or_path, download_root).path


def find_backbone(name_or_path: str | Path, download_root: str | Path | None = None) -> Named:
    """As :func:`find_checkpoint`, with the configuration where it is known by the name."""
    name = str(name_or_path)
    if not name:
        raise ValueError(f"no model is named; expected a file or one of {', '.join(available_models())}")
    if name in EMBEDDED:
        path = EMBEDDED[name]
        if not path.is_file():
            raise FileNotFoundError(f"the weights of {name!r} are missing at {path}; they come with the package")
        return Named(path, None, name)
    if name in MODELS:
        return Named(Path(download(MODELS[name], download_root)), None, name)
    if name.startswith(HUB):
        return of_hub(name)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return Named(path, None, name)
    if found := of_open_clip(name):
        return found
    looks_like_path = path.suffix != "" or len(path.parts) > 2
    kind = FileNotFoundError if looks_like_path else ValueError
    raise kind(
        f"{name!r} is neither a file nor one of the models {', '.join(available_models())}{similar_names(name)}; "
        f"others are given as {'; '.join(FORMS)}"
    )


def preprocessing(side: int, info: CheckpointInfo | None = None) -> Callable[[Image.Image], Tensor]:
    """The transform a CLIP is evaluated with: resized to ``side`` (of the shorter side, then a center crop, or of both
    sides), RGB, normalized.

    Args:
        side: of the model's input, in pixels.
        info: resizing, interpolation, pixel mean and standard deviation; OpenAI's when None.

    Returns:
        Function from a PIL image to a (3, side, side) fp32 tensor.
    """
    info = info or CheckpointInfo()
    return Compose(
        [
            _shallow,
            Resize((side, side) if info.resize == "squash" else side, InterpolationMode(info.interpolation)),
            CenterCrop(side),
            _to_rgb,
            ToTensor(),
            Normalize(info.mean, info.std),
        ]
    )


def _shallow(image: Image.Image) -> Image.Image:
    """An image of 16 bits (65535 is white) or of floats (1.0 is white) with 8 bits, which Pillow would clip instead."""
    top = 1.0 if image.mode == "F" else 65535 if image.mode.startswith("I") else None
    if top is None:
        return image
    values = np.asarray(image).astype(np.float64) / top
    if not (values.min() >= 0 and values.max() <= 1):
        found = f"{top * values.min():g} to {top * values.max():g}"
        raise ValueError(f"pixels of mode {image.mode} are {found}, expected 0 to {top:g}")
    return Image.fromarray((255 * values).round().astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
