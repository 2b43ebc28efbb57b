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
        kept: rows, counted from the last, whose chunks keep what the backward pass needs; all others are computed again
            in it. None = `rows`: one chunk, which costs no memory beyond what computing a chunk again takes anyway.
    """

    rows: int
    kept: int | None = None


def split_rows(rows: Tensor, chunks: Chunks | None) -> Sequence[Tensor]:
    """(k,) row numbers in chunks; one chunk when `chunks` is None.

    Raises:
        ValueError: chunks without rows.
    """
    if chunks is None:
        return [rows]
    if chunks.rows < 1:
        raise ValueError(f"{chunks} needs at least 1 row")
    return rows.split(chunks.rows)


def in_chunks(encode: Callable[..., Result], calls: Sequence[tuple], chunks: Chunks | None) -> list[Result]:
    """`encode(*arguments)` for every call, one after the other.

    With gradients all calls but the last ones, of `chunks.kept` rows in all, keep their arguments only. Towers draw no
    random numbers, so none are restored.

    Args:
        encode: function of the arguments of one call.
        calls: arguments of every call, the first of them its rows.
        chunks: None keeps everything.
    """
    again = 0
    if chunks is not None and torch.is_grad_enabled():
        room = chunks.rows if chunks.kept is None else chunks.kept
        for again in range(len(calls), 0, -1):
            room -= len(calls[again - 1][0])
            if room < 0:
                break
        else:
            again = 0
    return [
        checkpoint(encode, *call, use_reentrant=False, preserve_rng_state=False) if k < again else encode(*call)
        for k, call in enumerate(calls)
    ]
