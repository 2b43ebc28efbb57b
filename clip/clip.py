"""The public functions of the package: names, loading, tokenizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip.simple_tokenizer import VOCAB_SIZE, SimpleTokenizer, shared_tokenizer

__all__ = ["tokenize"]


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
        RuntimeError: a text is longer than ``context_length`` and ``truncate`` is false.
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
                raise RuntimeError(
                    f"Input {text!r} has {len(ids)} tokens, too long for context length {context_length}"
                )
            ids = [*ids[: context_length - 1], tokenizer.end]
        out[row, : len(ids)] = torch.tensor(ids)
    return out


def __getattr__(name: str) -> Any:
    if name == "_tokenizer":  # made at first use: reading the merge list takes a moment
        tokenizer: SimpleTokenizer = shared_tokenizer()
        return tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
