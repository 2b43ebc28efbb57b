"""Intermediate results of the towers, on request: layers, attention maps, and features before the projection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from clip.adapters import inner, tower_blocks
from clip.chunks import whole


@dataclass
class Record:
    """Values of the last forward of a tower inside :func:`record`, with their gradients.

    Attributes:
        layers: (rows, L, d) output of each block asked for, by its number.
        attention: (rows, heads, L, L) softmax weights of each block asked for, by its number. They are computed beside
            the forward, which does not go through them.
        pooled: (rows, d), normalised and not projected, of the class or end-of-text token.
        tokens: (rows, L, d), the same of all positions; of text only where its tokens were asked for.
    """

    layers: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None
    tokens: Tensor | None = None


@contextlib.contextmanager
def record(model: Any, tower: str, layers: Sequence[int] = (), attention: Sequence[int] = ()) -> Iterator[Record]:
    """Keeps what a tower computes; outside nothing is kept, and what is computed is the same.

    Inside, towers take all rows at once: no chunks, and no sentence shares anything with another.

    Args:
        model: a :class:`clip.CLIP`.
        tower: "text" or "vision", which must be a vision transformer.
        layers: numbers of blocks whose output is kept; below 0 counted from the last.
        attention: numbers of blocks whose attention is kept, likewise.

    Raises:
        ValueError: a tower or block that does not exist, or a tower of another library.
    """
    if family := getattr(model, "family", None):
        raise ValueError(f"blocks are recorded of CLIP's own towers; this backbone is {family}")
    blocks = tower_blocks(model, tower)
    count, found = len(blocks), Record()
    for number in (*layers, *attention):
        if not -count <= number < count:
            raise ValueError(f"block {number} of the {tower} tower is asked for, expected {-count} to {count - 1}")
    hooks: list[Any] = []

    def keep_layer(number: int) -> None:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            found.layers[number] = out

        hooks.append(blocks[number].register_forward_hook(hook))

    def keep_attention(number: int) -> None:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            found.attention[number] = module.maps(*arguments)

        hooks.append(inner(inner(blocks[number]).get_submodule("attn")).register_forward_pre_hook(hook))

    def keep_features(_: nn.Module, __: Any, out: Tensor) -> None:
        if out.dim() == 2:
            found.pooled = out
        else:
            found.tokens = out
            if tower == "vision":
                found.pooled = out[:, 0]

    for number in layers:
        keep_layer(number)
    for number in attention:
        keep_attention(number)
    last = model.ln_final if tower == "text" else getattr(model.visual, "ln_post", None) or model.visual.norm
    hooks.append(last.register_forward_hook(keep_features))
    token = whole.set(True)
    try:
        yield found
    finally:
        whole.reset(token)
        for hook in hooks:
            hook.remove()
