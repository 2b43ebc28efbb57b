"""The public functions of the package: names of models, loading, tokenizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from clip.build import build_model
from clip.checkpoints import PIXEL_MEAN, PIXEL_STD, CheckpointInfo, load_checkpoint, save_model
from clip.download import MODELS, download
from clip.model import CLIP, convert_weights
from clip.simple_tokenizer import VOCAB_SIZE, shared_tokenizer

__all__ = ["available_models", "build_model", "convert_weights", "load", "save_model", "tokenize"]

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
        name_or_path: a name from :func:`available_models`, a checkpoint file, or a folder with ``config.json``.
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
    """
    path = find_checkpoint(name_or_path, download_root)
    model, info = load_checkpoint(path, quick_gelu)
    return model.to(device), preprocessing(model.visual.input_resolution, info)


def find_checkpoint(name_or_path: str | Path, download_root: str | Path | None = None) -> Path:
    """The file or folder that a name or path stands for, downloaded if it must be; raises as :func:`load` does."""
    name = str(name_or_path)
    if name in EMBEDDED:
        path = EMBEDDED[name]
        if not path.is_file():
            raise FileNotFoundError(f"the weights of {name!r} are missing at {path}; they come with the package")
        return path
    if name in MODELS:
        return Path(download(MODELS[name], download_root))
    path = Path(name_or_path).expanduser()
    if not path.exists():
        looks_like_path = path.suffix != "" or len(path.parts) > 2
        kind = FileNotFoundError if looks_like_path else ValueError
        raise kind(f"{name!r} is neither a file nor one of the models {', '.join(available_models())}")
    return path


def preprocessing(side: int, info: CheckpointInfo | None = None) -> Callable[[Image.Image], Tensor]:
    """The transform CLIP is evaluated with: shorter side to ``side`` (bicubic), centre crop, RGB, normalised.

    Args:
        side: of the model's input, in pixels.
        info: pixel mean and standard deviation; OpenAI's when None.

    Returns:
        Function from a PIL image to a (3, side, side) fp32 tensor.
    """
    mean, std = (PIXEL_MEAN, PIXEL_STD) if info is None else (info.mean, info.std)
    return Compose(
        [
            Resize(side, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(side),
            _to_rgb,
            ToTensor(),
            Normalize(mean, std),
        ]
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


class TextTooLong(ValueError, RuntimeError):
    """More tokens than the text tower takes; a RuntimeError too, as OpenAI's `tokenize` raises one."""


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    """Token ids of texts, between start and end token, padded with zeros.

    Args:
        texts: one text or several.
        context_length: columns of the result.
        truncate: cut texts that are too long (the last id stays the end token) instead of raising.
        vocab_size: entries of the model's vocabulary; its last two are the start and the end token.

    Returns:
        (n, context_length) int64.

    Raises:
        TextTooLong: a text is longer than ``context_length`` and ``truncate`` is false.
        ValueError: ``vocab_size`` or ``context_length`` out of range.
    """
    if context_length < 2:
        raise ValueError(f"context_length is {context_length}; start and end token alone need 2")
    tokenizer = shared_tokenizer(vocab_size)
    texts = [texts] if isinstance(texts, str) else texts
    out = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids = [tokenizer.start, *tokenizer.encode(text), tokenizer.end]
        if len(ids) > context_length:
            if not truncate:
                shown = f"{text[:80]!r}{'...' * (len(text) > 80)}"
                raise TextTooLong(
                    f"Input {shown} has {len(ids)} tokens, too long for context length {context_length}: shorten the "
                    "class name (classnames in dataset.yaml), the template (INPUT.TEMPLATE), CTX_INIT or N_CTX"
                )
            ids = [*ids[: context_length - 1], tokenizer.end]
        out[row, : len(ids)] = torch.tensor(ids)
    return out
