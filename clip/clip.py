"""The interface of OpenAI's ``clip.py``, for code that says ``from clip import clip``, as trainers for CoOp do.

Its models return tensors and their parts can be called the old way, see :mod:`clip.legacy`. This project itself says
``import clip`` and uses :mod:`clip.api`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip import api
from clip.api import EMBEDDED, available_models, convert_weights
from clip.download import MODELS, download
from clip.legacy import LegacyCLIP, as_legacy, build_legacy_model, plain_copy
from clip.simple_tokenizer import VOCAB_SIZE, SimpleTokenizer, shared_tokenizer

__all__ = ["available_models", "load", "tokenize"]

logger = logging.getLogger(__name__)


class _Places(dict):
    """Addresses of the published models; for the embedded model and for your own files, their path."""

    def __missing__(self, name: str) -> str:
        path = Path(EMBEDDED.get(name, name)).expanduser()
        if path.is_file():
            return str(path)
        raise KeyError(f"{name!r} is neither a file nor one of the models {', '.join(available_models())}")


_MODELS = _Places(MODELS)
_vocabulary = VOCAB_SIZE  # of the model built last: old code tokenizes without saying for which model


def _download(url: str, root: str | Path | None = None) -> str:
    """Path of a file that ``torch.jit.load`` or ``torch.load`` reads, for an address or path from ``_MODELS``."""
    if "://" in url:
        return download(url, root)
    folder = Path.home() / ".cache" / "clip" if root is None else Path(root).expanduser()
    return str(plain_copy(Path(url), folder))


def build_model(state_dict: dict[str, Tensor], design_details: dict[str, Any] | None = None) -> LegacyCLIP:
    """A CLIP from its weights, in evaluation mode on the CPU, with the prompts that ``design_details`` ask for.

    Its matrices are fp16 where there is a GPU, as in the original, and fp32 elsewhere, where half precision is slow.

    Raises:
        ValueError: weights that do not fit, or ``design_details`` that the towers cannot have.
    """
    model = build_legacy_model(state_dict, design_details)
    if torch.cuda.is_available():
        convert_weights(model)
    _use_vocabulary(model.vocab_size)
    return model


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[LegacyCLIP, Callable[[Image.Image], Tensor]]:
    """As :func:`clip.load`, but on the GPU if there is one, with fp16 matrices there, returning tensors."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, transform = api.load(name, device, jit, download_root)
    if torch.device(device).type != "cpu":
        convert_weights(model)
    _use_vocabulary(model.vocab_size)
    return as_legacy(model), transform


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """(n, context_length) token ids, in the vocabulary of the model that was built or loaded last."""
    return api.tokenize(texts, context_length, truncate, _vocabulary)


def _use_vocabulary(size: int) -> None:
    global _vocabulary
    if size != VOCAB_SIZE:
        logger.warning(
            "this model knows %d of the %d tokens: tokenize() uses them from now on, but a SimpleTokenizer() of your "
            "own counts with all; give it vocab_size=%d where it counts the tokens of names",
            size,
            VOCAB_SIZE,
            size,
        )
    _vocabulary = size


def __getattr__(name: str) -> Any:
    if name == "_tokenizer":  # made at first use: reading the merge list takes a moment
        tokenizer: SimpleTokenizer = shared_tokenizer()
        return tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
