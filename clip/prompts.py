"""Prompt vectors as arguments of a CLIP forward.

A method hands vectors to a tower as :class:`Prompts` and gets :class:`Encoded` back. :func:`overwrite` is the only code
of the project that puts a vector into a sequence: contexts, deep prompts and label tokens alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """Prompt vectors of one tower; ``len(layers)`` is the depth J of the papers.

    Attributes:
        layers: J tensors of shape (n, d) or (rows, n, d). ``layers[0]`` enters with the tokens, ``layers[i]``
            overwrites the same places at the input of block i; None leaves them as the block before made them, which
            is also what block J and later ones see. Vision tower (ViT): the first layers may be None, then the vectors
            enter at the first block that has some.
        slots: text tower: (n,) or (rows, n) integer positions in the sequence. Vision tower: None, prompts are
            appended.
        prompt_index: text tower: (rows,) which of K prompts a row has, of layers (K, n, d). The same result as layers
            (rows, n, d), but what rows of one prompt have in common is computed once. None: as given.
    """

    layers: tuple[Tensor | None, ...]
    slots: Tensor | None
    prompt_index: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """The layer that enters with the tokens.

        Raises:
            ValueError: it is None.
        """
        layer = self.layers[0]
        if layer is None:
            raise ValueError("layer 0 of prompts is None; expected a tensor, only deeper layers may be left out")
        return layer

    @property
    def length(self) -> int:
        """n, vectors of a layer."""
        return next(layer for layer in self.layers if layer is not None).shape[-2]

    def rows(self, index: Tensor) -> Prompts:
        """Prompts of the rows (k,) of a batch, (k, n, d), without prompt_index; shared prompts stay as they are."""
        own = index if self.prompt_index is None else self.prompt_index[index]
        layers = tuple(
            layer.index_select(0, own) if layer is not None and layer.dim() == 3 else layer for layer in self.layers
        )
        slots = self.slots[index] if self.slots is not None and self.slots.dim() == 2 else self.slots
        return Prompts(layers, slots)


class Encoded(NamedTuple):
    """Output of a tower, always.

    Attributes:
        pooled: (rows, E) projected class token (vision) or end-of-text token (text), not normalised.
        tokens: (rows, L, E) every position, projected, not normalised. Vision: class token, patches, prompts, in this
            order. Text: positions up to the longest end-of-text token of the batch.
    """

    pooled: Tensor
    tokens: Tensor


def overwrite(x: Tensor, slots: Tensor, values: Tensor) -> Tensor:
    """Puts vectors into a sequence, out of place; the gradient of the overwritten rows of ``x`` is zero.

    Args:
        x: (rows, L, d) sequence.
        slots: (n,) positions common to all rows, or (rows, n), each in [0, L) and without repeats.
        values: (n, d) or (rows, n, d); cast to the type of ``x``.

    Returns:
        (rows, L, d) copy of ``x`` with ``values`` at ``slots``.

    Raises:
        ValueError: shapes do not fit. Positions are checked by :func:`check_slots`, which waits for the device.
    """
    rows, _, width = x.shape
    _check_shape("values", values, rows, slots.shape[-1], width)
    values = values.to(x.dtype).expand(rows, -1, -1)
    slots = slots.to(x.device)
    if slots.dim() == 1:
        return x.index_copy(1, slots, values)
    if slots.dim() != 2 or slots.shape[0] != rows:
        raise ValueError(f"slots have shape {tuple(slots.shape)}; expected (n,) or ({rows}, n) for {rows} rows")
    return x.scatter(1, slots.unsqueeze(-1).expand(-1, -1, width), values)


def check_prompts(prompts: Prompts, rows: int, width: int, depth: int, what: str, late: bool = False) -> int:
    """Checks the shapes of prompts before they enter a tower.

    Args:
        prompts: the prompts.
        rows: rows of the batch.
        width: width d of the tower.
        depth: most layers allowed, the number of blocks.
        what: name for the message, such as "vision prompts".
        late: the first layers may be None.

    Returns:
        n, the number of prompt vectors per row.

    Raises:
        ValueError: no first layer, more layers than blocks, a layer of another shape, or a wrong prompt_index.
    """
    layers = prompts.layers
    if isinstance(layers, Tensor):
        raise ValueError(
            f"{what}: layers is a tensor of shape {tuple(layers.shape)}; expected a tuple with one tensor per layer"
        )
    if not 1 <= len(layers) <= depth:
        raise ValueError(f"{what} have {len(layers)} layers; expected 1 to {depth}")
    if layers[0] is None and not (late and any(layer is not None for layer in layers)):
        raise ValueError(f"{what}: layer 0 is None; expected a tensor, only deeper layers may be left out")
    for layer in layers:
        if layer is not None and layer.dim() not in (2, 3):
            raise ValueError(
                f"{what}: a layer has shape {tuple(layer.shape)}; expected (n, {width}) or ({rows}, n, {width})"
            )
    count = prompts.length
    if prompts.prompt_index is not None:
        if tuple(prompts.prompt_index.shape) != (rows,) or prompts.prompt_index.dtype != torch.int64:
            raise ValueError(
                f"prompt_index of {what} has shape {tuple(prompts.prompt_index.shape)} and type "
                f"{prompts.prompt_index.dtype}; expected int64 ({rows},)"
            )
        rows = next((len(layer) for layer in layers if layer is not None and layer.dim() == 3), 1)
    for i, layer in enumerate(layers):
        if layer is not None:
            _check_shape(f"{what}: layer {i}", layer, rows, count, width)
    return count


def check_prompt_index(prompt_index: Tensor, count: int, what: str) -> None:
    """Raises ValueError unless all of `prompt_index` are numbers of `count` prompts; waits for the device."""
    low, high = torch.stack(prompt_index.aminmax()).tolist()
    if low < 0 or high >= count:
        raise ValueError(f"prompt_index of {what} spans {low}..{high}; expected 0 to {count - 1} for {count} prompts")


def check_slots(slots: Tensor | None, rows: int, count: int, stop: Tensor, what: str) -> Tensor:
    """Checks the positions of text prompts: one wait for the device.

    Args:
        slots: (n,) or (rows, n) positions.
        rows: rows of the batch.
        count: n, the number of vectors per row.
        stop: (rows,) position of each row's end-of-text token; slots must lie before it.
        what: name for the message.

    Returns:
        The slots as int64 on the device of ``stop``.

    Raises:
        ValueError: missing, of another shape, no integers, repeated, negative, or at or after the end-of-text token.
    """
    if slots is None:
        raise ValueError(f"{what} need slots: the positions (n,) or (rows, n) they take in the sequence")
    if slots.is_floating_point() or slots.is_complex() or slots.dtype == torch.bool:
        raise ValueError(f"slots of {what} have type {slots.dtype}; expected integers")
    if tuple(slots.shape) not in ((count,), (rows, count)):
        raise ValueError(f"slots of {what} have shape {tuple(slots.shape)}; expected ({count},) or ({rows}, {count})")
    slots = slots.to(stop.device, torch.int64)
    if count == 0 or rows == 0:
        return slots
    ordered = slots.sort(-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]).any()
    bad = torch.stack([repeated, (ordered[..., 0] < 0).any(), (ordered[..., -1] >= stop).any()]).tolist()
    if any(bad):
        reason = "repeat" if bad[0] else "are negative" if bad[1] else "reach the end-of-text token"
        raise ValueError(
            f"slots of {what} {reason}: they span {int(ordered.min())}..{int(ordered.max())}; expected different "
            f"positions before each row's end-of-text token (the first one is at {int(stop.min())})"
        )
    return slots


def _check_shape(what: str, values: Tensor, rows: int, count: int, width: int) -> None:
    expected = (count, width) if values.dim() == 2 else (rows, count, width)
    if tuple(values.shape) != expected:  # one comparison of equal lengths: rows may be a symbol of torch.export
        raise ValueError(
            f"{what} of shape {tuple(values.shape)} does not fit; "
            f"expected ({count}, {width}) or ({rows}, {count}, {width})"
        )
