"""Rows of a tower in chunks that are computed again in the backward pass, so that memory grows with a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")
whole: ContextVar[bool] = ContextVar("towers take all rows at once, whatever chunks say", default=False)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Chunks(NamedTuple):
    """Rows that a tower takes at once.

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
    if chunks is None or whole.get():
        return [rows]
    if chunks.rows < 1:
        raise ValueError(f"{chunks} needs at least 1 row")
    return rows.split(chunks.rows)


def in_chunks(encode: Callable[..., Result], calls: Sequence[tuple], chunks: Chunks | None) -> list[Result]:
    """`encode(*arguments)` for every call, one after the other.

    With gradients all calls but the last ones, of `chunks.kept` rows in all, keep their arguments only; see
    :func:`recomputed`.

    Args:
        encode: function of the arguments of one call.
        calls: arguments of every call, the first of them its rows.
        chunks: None keeps everything.
    """
    again = 0
    if chunks is not None and torch.is_grad_enabled() and not whole.get():
        room = chunks.rows if chunks.kept is None else chunks.kept
        for again in range(len(calls), 0, -1):
            room -= len(calls[again - 1][0])
            if room < 0:
                break
        else:
            again = 0
    return [recomputed(encode, *call) if k < again else encode(*call) for k, call in enumerate(calls)]


def recomputed(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)`, of which only the arguments are kept: the backward pass computes it again.

    It then draws the random numbers of the first time (dropout, drop_path), and context variables, such as which
    adapters are off, have their values of the first time.
    """
    return checkpoint(partial(copy_context().run, function), *arguments, use_reentrant=False)


def draws(module: nn.Module) -> bool:
    """True for a module that drops something at random as it is set now: dropout or drop_path, in training."""
    return any(
        part.training and (getattr(part, "drop_path", 0) or (isinstance(part, DROPOUTS) and part.p))
        for part in module.modules()
    )
