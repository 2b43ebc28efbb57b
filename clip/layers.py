"""Layers both towers share: normalisation, activation, attention, and the transformer that takes deep prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.chunks import recomputed
from clip.prompts import Prompts, check_prompts, overwrite

Mask = Tensor | bool | None
"""(L, P + L), added to the scores; True: each of L positions attends to those before it and to itself; None: to all."""


def causal_mask(before: int, x: Tensor) -> Mask:
    """Mask by which every position of x (rows, L, d) attends to `before` earlier ones, those before it and itself.

    Without earlier ones it needs no matrix: fused kernels then leave out what would be masked. With them it is a matrix
    (L, before + L), since torch's `is_causal` aligns the first query, and not the last, with the first key.
    """
    if not before:
        return True
    return torch.full((x.shape[1], before + x.shape[1]), -torch.inf, device=x.device).triu_(before + 1)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, written out.

    Args:
        q: (rows, heads, L, d).
        k, v: (rows, heads, P + L, d).
        mask: see `Mask`.

    Returns:
        (rows, heads, L, d). Holds rows * heads * L * L scores: meant for CLIP's sequences of at most about 260.
    """
    return attention_weights(q, k, mask) @ v


def attention_weights(q: Tensor, k: Tensor, mask: Mask = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask): (rows, heads, L, P + L), arguments as :func:`explicit_attention`."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is True:
        mask = torch.full(scores.shape[-2:], -torch.inf, device=scores.device).triu_(1)
    if isinstance(mask, Tensor):
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """Scaled dot-product attention by the faster of two equal ways.

    torch's fused attention, except for training in half precision on a CPU, where its backward is slow. Measured there
    on whole transformer blocks, forward and backward, 12 to 199 tokens: in bf16 autocast :func:`explicit_attention`
    makes the step 1.3 to 2.0 times as fast; in fp32 both are equal within 8 %, and the fused one keeps no scores.

    Args:
        q: (rows, heads, L, d).
        k, v: (rows, heads, P + L, d), P = 0 unless positions before those of q are attended to.
        mask: see `Mask`.

    Returns:
        (rows, heads, L, d).
    """
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if needs_grad and q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        return explicit_attention(q, k, v, mask)
    matrix = mask.to(q.dtype) if isinstance(mask, Tensor) else None
    return F.scaled_dot_product_attention(q, k, v, matrix, is_causal=mask is True)


PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class KeyValue(NamedTuple):
    """Keys and values (rows, heads, P, d / heads) of one block."""

    keys: Tensor
    values: Tensor


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in fp32 for half-precision input and cast back to the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d) of any floating type. Returns the same shape and type."""
        out = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return out.to(x.dtype)


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x) that keeps x alone for the backward pass.

    Measured in fp32 on one AVX-512 core, 3,184 x 3,072 numbers, forward and backward: 65 ms against 154 ms of the plain
    expression, which also keeps the sigmoid; the forward is equal to the last bit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (1.702 * x).sigmoid_().mul_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0], 1.702 * x)  # silu(1.702 x) / 1.702 is the function


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's models."""

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape. Returns the same shape."""
        return x * torch.sigmoid(1.702 * x) if torch.jit.is_tracing() else _QuickGELU.apply(x)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``.

    Queries, keys and values are one product until :meth:`split` makes them the modules `q_proj`, `k_proj` and `v_proj`,
    which can be replaced, as `out_proj` always can. A state dict has the fused names either way.

    Args:
        width: d.
        heads: number of heads, a divisor of ``width``.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"a width of {width} cannot be divided into {heads} heads")
        self.heads = heads
        self.in_proj_weight: nn.Parameter | None = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias: nn.Parameter | None = nn.Parameter(torch.zeros(3 * width))
        self.q_proj: nn.Module | None = None
        self.k_proj: nn.Module | None = None
        self.v_proj: nn.Module | None = None
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        self.register_state_dict_post_hook(fuse_projections)
        self.register_load_state_dict_pre_hook(split_projections)

    def split(self) -> None:
        """Makes queries, keys and values separate modules, with copies of the fused weights."""
        if self.in_proj_weight is None or self.in_proj_bias is None:
            return
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases):
            linear = nn.Linear(weight.shape[1], len(weight), device="meta")
            for key, value, fused in (("weight", weight, self.in_proj_weight), ("bias", bias, self.in_proj_bias)):
                setattr(linear, key, nn.Parameter(value.detach().clone(), fused.requires_grad))
            setattr(self, name, linear.train(self.training))
        self.in_proj_weight = self.in_proj_bias = None

    def fuse(self) -> None:
        """Undoes :meth:`split` where all three are plain linear layers."""
        linear = [getattr(self, name) for name in PROJECTIONS]
        if all(type(one) is nn.Linear for one in linear):
            for key in ("weight", "bias"):
                values = [getattr(one, key) for one in linear]
                fused = nn.Parameter(torch.cat(values).detach(), any(value.requires_grad for value in values))
                setattr(self, f"in_proj_{key}", fused)
            self.q_proj = self.k_proj = self.v_proj = None

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        kv_cache: KeyValue | None = None,
        new_kv: list[KeyValue] | None = None,
    ) -> Tensor:
        """Attention of every position to itself and, where the mask lets it, to others.

        Args:
            x: (rows, L, d).
            mask: see `Mask`.
            kv_cache: keys and values of P positions before those of x, which they attend to as well.
            new_kv: receives the keys and values of x.

        Returns:
            (rows, L, d).
        """
        q, k, v = self.project(x)
        if new_kv is not None:
            new_kv.append(KeyValue(k, v))
        if kv_cache is not None:
            k, v = torch.cat([kv_cache.keys, k], dim=2), torch.cat([kv_cache.values, v], dim=2)
        out = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # (rows, L, d)
        return self.out_proj(out)

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values of x (rows, L, d), each (rows, heads, L, d / heads)."""
        if self.in_proj_weight is not None:
            qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (rows, L, 3 d)
            return qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        parts = (getattr(self, name)(x) for name in PROJECTIONS)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def keys_values(self, x: Tensor) -> KeyValue:
        """Keys and values of x (rows, L, d), for positions that are seen and ask nothing."""
        if self.in_proj_weight is None or self.in_proj_bias is None:
            return KeyValue(*self.project(x)[1:])
        width = x.shape[-1]
        both = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])  # (rows, L, 2 d)
        return KeyValue(*both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind())

    def maps(self, x: Tensor, mask: Mask = None, *_: Any) -> Tensor:
        """Attention weights (rows, heads, L, L) of x (rows, L, d)."""
        q, k = self.project(x)[:2]
        return attention_weights(q, k, mask)


def fuse_projections(module: nn.Module, weights: dict[str, Tensor], prefix: str, _: Any = None) -> None:
    """Names the weights of q, k and v apart as OpenAI does, fused, in place; the others of a state dict stay."""
    for kind in ("weight", "bias"):
        keys = [f"{prefix}{name}.{kind}" for name in PROJECTIONS]
        if all(key in weights for key in keys):
            weights[f"{prefix}in_proj_{kind}"] = torch.cat([weights.pop(key) for key in keys])


def split_projections(module: Attention, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Undoes :func:`fuse_projections` for an attention whose q, k and v are apart."""
    for kind in ("weight", "bias"):
        fused = f"{prefix}in_proj_{kind}"
        if module.in_proj_weight is None and fused in weights:
            weights |= {f"{prefix}{name}.{kind}": one for name, one in zip(PROJECTIONS, weights.pop(fused).chunk(3))}


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d). Returns the same shape."""
        return self.c_proj(self.gelu(self.c_fc(x)))


def drop_path(branch: Tensor, rate: float) -> Tensor:
    """Sets a residual branch of whole rows to zero with probability `rate` and divides the others by 1 - rate.

    Stochastic depth (Huang et al. 2016), row by row.

    Args:
        branch: (rows, L, d).
        rate: in [0, 1); 0 changes nothing and draws nothing.

    Returns:
        (rows, L, d).
    """
    if rate == 0:
        return branch
    kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= rate
    return branch * (kept / (1 - rate)).to(branch.dtype)


def set_drop_path(blocks: nn.Module, rate: float) -> None:
    """Gives block i of n the drop-path rate ``rate * i / (n - 1)``: none in the first block, `rate` in the last.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path is {rate}; expected a rate in [0, 1)")
    members: list[Any] = list(blocks.children())
    for i, block in enumerate(members):
        block.drop_path = rate * i / max(1, len(members) - 1)


def append_prompts(x: Tensor, prompts: Prompts | None, depth: int, late: bool = False) -> tuple[Tensor, Prompts | None]:
    """Puts vision prompts behind the image tokens.

    Args:
        x: (rows, L, d) class token and patches.
        prompts: n vectors per layer, without slots; None for none.
        depth: number of blocks.
        late: prompts whose first layers are None are taken; :func:`run_blocks` appends them.

    Returns:
        (rows, L + n, d), or x for late prompts; and the prompts with their slots L..L+n-1 for the deeper layers.

    Raises:
        ValueError: prompts of another shape, deeper than the tower, or with slots.
    """
    if prompts is None:
        return x, None
    rows, length, width = x.shape
    if prompts.slots is not None:
        raise ValueError("vision prompts are appended to the patches; their slots must be None")
    count = check_prompts(prompts, rows, width, depth, "vision prompts", late)
    if prompts.layers[0] is not None:
        x = torch.cat([x, prompts.first.to(x.dtype).expand(rows, -1, -1)], dim=1)
    return x, Prompts(prompts.layers, torch.arange(length, length + count, device=x.device))


def run_blocks(
    blocks: Iterable[Callable[..., Tensor]],
    x: Tensor,
    extra: tuple[Any, ...],
    prompts: Prompts | None,
    recompute: bool = False,
) -> Tensor:
    """Runs blocks with deep prompts: the only place these exist, for every tower.

    Args:
        blocks: called as ``block(x, *extra)``.
        x: (rows, L, d), with ``prompts.layers[0]`` already in it.
        extra: further arguments of every block.
        prompts: ``layers[i]``, i >= 1, overwrites ``slots`` at the input of block i unless it is None; of late prompts
            the first one is appended.
        recompute: keep only the inputs of the blocks and compute them again in the backward pass.

    Returns:
        (rows, L, d).

    Raises:
        ValueError: deep prompts without slots.
    """
    for i, block in enumerate(blocks):
        deep = prompts.layers[i] if prompts is not None and 0 < i < len(prompts.layers) else None
        if prompts is not None and deep is not None:
            if prompts.slots is None:
                raise ValueError("deep prompts need slots inside a transformer")
            late = all(layer is None for layer in prompts.layers[:i])
            x = (
                torch.cat([x, deep.to(x.dtype).expand(x.shape[0], -1, -1)], 1)
                if late
                else overwrite(x, prompts.slots, deep)
            )
        if recompute and torch.is_grad_enabled():
            x = recomputed(block, x, *extra)
        else:
            x = block(x, *extra)
    return x


class Block(nn.Module):
    """One pre-norm residual block: attention, then a two-layer perceptron. `drop_path` is its rate in training."""

    def __init__(self, width: int, heads: int, quick_gelu: bool, mlp_width: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width, mlp_width, quick_gelu)
        self.drop_path = 0.0

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        kv_cache: KeyValue | None = None,
        new_kv: list[KeyValue] | None = None,
    ) -> Tensor:
        """As :meth:`Attention.forward`; returns (rows, L, d)."""
        rate = self.drop_path if self.training else 0.0
        x = x + drop_path(self.attn(self.ln_1(x), mask, kv_cache, new_kv), rate)
        return x + drop_path(self.mlp(self.ln_2(x)), rate)


class Transformer(nn.Module):
    """A stack of blocks that takes deep prompts. With `checkpoint` set, training computes blocks twice to save memory.

    Args:
        width: d.
        layers: number of blocks.
        heads: attention heads.
        quick_gelu: QuickGELU when true, GELU when false.
        mlp_width: hidden width of the perceptrons; 4 d when None.
    """

    def __init__(
        self, width: int, layers: int, heads: int, quick_gelu: bool = True, mlp_width: int | None = None
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.heads = heads
        self.checkpoint = False
        hidden = 4 * width if mlp_width is None else mlp_width
        self.resblocks = nn.Sequential(*(Block(width, heads, quick_gelu, hidden) for _ in range(layers)))

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        prompts: Prompts | None = None,
        kv_cache: Sequence[KeyValue] | None = None,
        new_kv: list[KeyValue] | None = None,
    ) -> Tensor:
        """Runs all blocks.

        Args:
            x: (rows, L, d), with ``prompts.layers[0]`` already in it.
            mask: see `Mask`.
            prompts: ``layers[i]``, i >= 1, overwrites ``slots`` at the input of block i unless it is None.
            kv_cache: for every block the keys and values of P positions before those of x; None = there are none.
            new_kv: receives the keys and values of every block, the `kv_cache` of another call.

        Returns:
            (rows, L, d).

        Raises:
            ValueError: prompts without slots, with prompt_index, deeper than the stack or of another shape.
        """
        if prompts is not None:
            if prompts.prompt_index is not None:
                raise ValueError("prompts inside a transformer are given by row; their prompt_index must be None")
            check_prompts(prompts, x.shape[0], self.width, self.layers, "prompts", late=True)
        blocks = [
            partial(block, kv_cache=None if kv_cache is None else kv_cache[i], new_kv=new_kv)
            for i, block in enumerate(self.resblocks)
        ]
        again = self.checkpoint and self.training and new_kv is None
        return run_blocks(blocks, x, (mask,), prompts, again)


def check_image(image: Tensor, resolution: int) -> None:
    """Raises ValueError unless ``image`` is (B, 3, resolution, resolution)."""
    if image.dim() != 4 or tuple(image.shape[1:]) != (3, resolution, resolution):
        raise ValueError(f"images have shape {tuple(image.shape)}; expected (B, 3, {resolution}, {resolution})")
