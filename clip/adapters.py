"""Adapters: modules beside the projections of a tower's blocks, which can be switched off and merged into the weights.

An adapter is a module that is called with the input and the output of what it adapts and returns the output that takes
its place: ``adapter(x, out)``. One with ``adapter.around(module, x, ...)`` gets all that the module would get instead,
and calls it itself. A module ``adapter.merged(weight, bias)`` returns the same change made to the weights
themselves, where that is possible. Parameter names of the towers stay OpenAI's, whatever is adapted: an adapter is in
no state dict of the model; keep the modules that :func:`add_adapters` returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TOWERS = ("text", "vision")
PARTS = {
    "q": ("attn", ("q_proj",)),
    "k": ("attn", ("k_proj",)),
    "v": ("attn", ("v_proj",)),
    "out": ("attn", ("out_proj", "proj")),
    "fc1": ("mlp", ("c_fc",)),
    "fc2": ("mlp", ("c_proj",)),
    "attn": ("", ("attn",)),
    "mlp": ("", ("mlp",)),
    "block": ("", ()),
}
"""Names of what can be adapted -> its parent in the block and its attribute, by kind of tower; or the whole block."""
switched_off: ContextVar[frozenset[int]] = ContextVar("adapters that are switched off, by id", default=frozenset())


POSITIONS: dict[str, Callable[[int], range]] = {
    "all": lambda n: range(n),
    "bottom": lambda n: range(n // 3),
    "mid": lambda n: range(n // 3, n - n // 3),
    "up": lambda n: range(n - n // 3, n),
    "half-bottom": lambda n: range(n // 2),
    "half-up": lambda n: range(n // 2, n),
    "top1": lambda n: range(n - 1, n),
    "top2": lambda n: range(n - 2, n),
    "top3": lambda n: range(n - 3, n),
}
"""Names of sets of blocks -> those of a tower of n."""
Blocks = Iterable[int] | str
"""Numbers from 0, below 0 counted from the last; or a name of :data:`POSITIONS`."""


class Place(NamedTuple):
    """Position of an adapter: tower "text" or "vision", number of the block from 0, and a name of :data:`PARTS`."""

    tower: str
    block: int
    part: str


class Adapted(nn.Module):
    """A module and its adapter. Its state dict is that of the module alone."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """``adapter(x, base(x, ...))``, or ``base(x, ...)`` where adapters are switched off."""
        off = id(self) in switched_off.get()
        if not off and (around := getattr(self.adapter, "around", None)):
            return around(self.base, x, *args, **options)
        out = self.base(x, *args, **options)
        return out if off else self.adapter(x, out)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override] # torch has overloads
        """As of the module that is adapted, under its own names."""
        return self.base.state_dict(*args, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}base.{key[len(prefix) :]}"] = state_dict.pop(key)
        for key, value in self.adapter.state_dict(keep_vars=True).items():  # stays as it is
            state_dict[f"{prefix}adapter.{key}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


class LowRank(nn.Module):
    """out + scale * B A dropout(x), A (r, d) drawn as a linear layer's, B (d', r) zero (LoRA, Hu et al. 2022).

    Args:
        linear: what is adapted.
        rank: r.
        scale: factor of the product.
        dropout: rate on x in training.

    Raises:
        ValueError: a rank below 1 or above the widths of the layer.
    """

    def __init__(self, linear: nn.Module, rank: int, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"low-rank adapters need a linear layer, got {type(linear).__name__}")
        largest = min(linear.in_features, linear.out_features)
        if not 1 <= rank <= largest:
            raise ValueError(f"the rank of an adapter is {rank}, expected 1 to {largest}, the smaller width")
        device = linear.weight.device
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.down = nn.Linear(linear.in_features, rank, bias=False, device=device)
        self.up = nn.Linear(rank, linear.out_features, bias=False, device=device)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """x: (..., d), out: (..., d'). Returns the shape of `out`."""
        return out + self.scale * self.up(self.down(self.dropout(x)))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight (d', d) + scale * B A, and the bias as it is."""
        return weight + self.scale * self.up.weight @ self.down.weight, bias


def add_adapters(
    model: Any,
    factory: Callable[[nn.Module, Place], nn.Module],
    towers: Iterable[str] = TOWERS,
    blocks: Blocks = "all",
    parts: Iterable[str] = ("q", "k", "v"),
) -> nn.ModuleDict:
    """Puts adapters into the blocks of a model, in place.

    Args:
        model: a :class:`clip.CLIP`.
        factory: called with the module and its place; returns the adapter. Adapters of several places may share parts.
        towers: "text", "vision".
        blocks: numbers from 0, below 0 counted from the last; or a name of :data:`POSITIONS`.
        parts: names of :data:`PARTS`: q, k, v, out, fc1, fc2 are linear layers, attn and mlp whole branches, block
            the whole.

    Returns:
        The adapters by ``tower-block-part``, in the order of towers, blocks and parts: what learns. The model holds
        them as well, so they are moved, cast and set to training with it.

    Raises:
        ValueError: a tower, block or part that does not exist.
    """
    towers, parts = tuple(towers), tuple(parts)
    for what, names, known in (("tower", towers, TOWERS), ("part", parts, tuple(PARTS))):
        if not names or not set(names) <= set(known) or len(set(names)) < len(names):
            raise ValueError(f"adapters on the {what}s {names}, expected different ones of {', '.join(known)}")
    places = [
        (Place(tower, block, part), (members, str(block)) if part == "block" else _parent(tower, members[block], part))
        for tower in towers
        for members in [tower_blocks(model, tower)]
        for block in _numbers(blocks, len(members), tower)
        for part in parts
    ]
    found = nn.ModuleDict()
    for place, (parent, name) in places:
        base = getattr(parent, name)
        adapter = factory(inner(base), place)
        setattr(parent, name, Adapted(base, adapter).train(base.training))
        found["-".join(map(str, place))] = adapter
    return found


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters, for all forwards inside, what is recomputed of them later included."""
    own = frozenset(id(module) for module in model.modules() if isinstance(module, Adapted))
    token = switched_off.set(switched_off.get() | own)
    try:
        yield
    finally:
        switched_off.reset(token)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Makes the changes of all adapters to the weights themselves, in place; none is left.

    Raises:
        ValueError: an adapter that is not a change of weights. Nothing was changed.
    """
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, Adapted)]
    for name, module in adapted:
        if not hasattr(module.adapter, "merged") or not isinstance(inner(module), nn.Linear):
            kind = type(module.adapter).__name__
            raise ValueError(f"the adapter of {name}, {kind}, has no merged(): it cannot become weights")
    for name, module in reversed(adapted):  # those inside others first
        base = module.base
        weight, bias = module.adapter.merged(base.weight.float(), None if base.bias is None else base.bias.float())
        base.weight.copy_(weight)
        if bias is not None:
            base.bias.copy_(bias)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    for part in model.modules():
        if fuse := getattr(part, "fuse", None):
            fuse()


def inner(module: nn.Module) -> nn.Module:
    """Module inside the adapters, or the module itself."""
    while isinstance(module, Adapted):
        module = module.base
    return module


def tower_blocks(model: Any, tower: str) -> nn.Sequential:
    """The blocks of a tower, "text" or "vision".

    Raises:
        ValueError: another tower, or one without blocks.
    """
    if tower == "text":
        return model.transformer.resblocks
    if tower != "vision":
        raise ValueError(f"the tower is {tower!r}, expected one of {', '.join(TOWERS)}")
    if not hasattr(model.visual, "blocks"):
        raise ValueError(f"blocks are asked for, but the image tower is a {kind_of(model.visual)} without any")
    return model.visual.blocks


def kind_of(tower: Any) -> str:
    """Name of the network of an image tower, for messages."""
    return getattr(tower, "kind", type(tower).__name__)


def _numbers(blocks: Blocks, count: int, tower: str) -> list[int]:
    if isinstance(blocks, str) and blocks not in POSITIONS:
        raise ValueError(f"adapters on the blocks {blocks!r}, expected numbers or one of {', '.join(POSITIONS)}")
    chosen = tuple(POSITIONS[blocks](count) if isinstance(blocks, str) else blocks)
    wrong = [block for block in chosen if not -count <= block < count]
    numbers = sorted({block % count for block in chosen})
    if wrong or len(numbers) < len(chosen) or not numbers:
        raise ValueError(
            f"adapters on the blocks {chosen} of the {tower} tower, expected different ones of 0 to {count - 1}"
        )
    return numbers


def _parent(tower: str, block: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The module that holds a part of a block, with q, k and v apart, and the part's name there."""
    where, names = PARTS[part]
    block = inner(block)
    parent = inner(getattr(block, where)) if where else block
    if part in ("q", "k", "v") and (split := getattr(parent, "split", None)):
        split()
    for name in names:
        if isinstance(getattr(parent, name, None), nn.Module):
            return parent, name
    raise ValueError(f"the blocks of the {tower} tower, {type(block).__name__}, have no {part} to adapt")
