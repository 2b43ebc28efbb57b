"""Rows of a tower in chunks that are computed again in the backward pass, so that memory grows with a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


class Chunks(NamedTuple):
    """How many rows a tower takes at once.

    Attributes:
        rows: rows of a chunk, at least 1.
        kept: chunks, counted from the last, that keep what the backward pass needs; all others are computed again in
            it. The last one costs no memory beyond what computing a chunk again takes anyway.
    """

    rows: int
    kept: int = 1


def split_rows(rows: Tensor, chunks: Chunks | None) -> Sequence[Tensor]:
    """(k,) row numbers in chunks; one chunk when `chunks` is None.

    Raises:
        ValueError: chunks without rows, or a negative number of kept ones.
    """
    if chunks is None:
        return [rows]
    if chunks.rows < 1 or chunks.kept < 0:
        raise ValueError(f"{chunks} needs at least 1 row and 0 kept chunks")
    return rows.split(chunks.rows)


def in_chunks(
    encode: Callable[..., Result], calls: Sequence[tuple], chunks: Chunks | None, gradient: bool = True
) -> list[Result]:
    """`encode(*arguments)` for every call, one after the other.

    With gradients all but the last `chunks.kept` calls keep their arguments only. Towers draw no random numbers, so
    none are restored.

    Args:
        encode: function of the arguments of one call.
        calls: arguments of every call.
        chunks: None keeps everything.
        gradient: false when no result will need a gradient.
    """
    again = 0 if chunks is None or not (gradient and torch.is_grad_enabled()) else len(calls) - chunks.kept
    return [
        checkpoint(encode, *call, use_reentrant=False, preserve_rng_state=False) if k < again else encode(*call)
        for k, call in enumerate(calls)
    ]
