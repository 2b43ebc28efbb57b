"""The EVA-02-style image tower of the Unmasked Token Alignment release, with prompts as arguments of the forward.

Pre-norm blocks; SwiGLU perceptrons with a normalisation inside; learned absolute positions and, in every block, 2-D
rotary positions on queries and keys of the patches only; biases on queries and values but not on keys; no layer scale;
layer normalisations with eps 1e-6; the normalised class token goes through the linear head. Parameter names are those
of the release (``eva_vit.py``), so ``visual.blocks.0.attn.q_proj.weight`` and so on load strictly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.layers import (
    LayerNorm,
    append_prompts,
    attend,
    attention_weights,
    check_image,
    drop_path,
    run_blocks,
    set_drop_path,
)
from clip.prompts import Encoded, Prompts

EPS = 1e-6
ROPE_GRID = 16
"""Side of the patch grid whose coordinates the rotary positions of every released model use."""
THETA = 10_000.0
HEAD_SCALE = 1e-3
"""Factor of the head's initial weights in the release."""


class EvaSize(NamedTuple):
    """Numbers of a released tower: pixels, patch side, d, blocks, heads, SwiGLU width, E."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    output_dim: int


SIZES = {
    "eva-B/16": EvaSize(224, 16, 768, 12, 12, 2048, 1024),
    "eva-L/14@336": EvaSize(336, 14, 1024, 24, 16, 2730, 1024),
    "eva-g/14@336": EvaSize(336, 14, 1408, 40, 16, 4096, 1024),
}
"""The released towers by name."""


def rotary_angles(side: int | tuple[int, int], head_width: int, grid: int = ROPE_GRID) -> Tensor:
    """Angles of the 2-D rotary positions (RoFormer's, per axis), for a grid of patches in rows.

    Patch (y, x) turns pair i of the first half of a head by y * grid / side * theta^(-4 i / head_width) and pair i of
    the second half by x in place of y: a grid of another side is scaled to `grid` (``pt_hw_seq_len``, ``intp_freq``).

    Args:
        side: patches per row and column, or rows and columns.
        head_width: d / heads, a multiple of 4.
        grid: side of the grid the coordinates are scaled to.

    Returns:
        (rows * columns, head_width / 2) fp32, on the CPU.

    Raises:
        ValueError: `head_width` is not a multiple of 4.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions need heads whose width is a multiple of 4, got {head_width}")
    exponent = torch.arange(0, head_width // 2, 2, dtype=torch.float32, device="cpu") / (head_width // 2)
    tall, wide = (side, side) if isinstance(side, int) else side

    def turns(count: int) -> Tensor:  # (count, head_width / 4)
        return (torch.arange(count, dtype=torch.float32, device="cpu") / count * grid)[:, None] * THETA**-exponent

    both = turns(tall)[:, None].expand(-1, wide, -1), turns(wide).expand(tall, -1, -1)
    return torch.cat(both, dim=-1).flatten(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns pairs (0, 1), (2, 3), ... of the last axis, in fp32.

    Args:
        x: (rows, heads, L, k).
        cos, sin: (L, k / 2) or (rows, 1, L, k / 2).

    Returns:
        (rows, heads, L, k) in the type of `x`.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class EvaAttention(nn.Module):
    """Self-attention with rotary positions; biases on queries and values only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"a width of {width} cannot be divided into {heads} heads")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (rows, L, d); cos, sin as in :func:`rotate`. Returns (rows, L, d)."""
        return self.proj(attend(*self.project(x, cos, sin)).transpose(1, 2).flatten(2))

    def maps(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention weights (rows, heads, L, L) of x (rows, L, d)."""
        q, k, _ = self.project(x, cos, sin)
        return attention_weights(q, k)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (rows, L, d), each (rows, heads, L, d / heads), the first two turned."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if all(type(part) is nn.Linear for part in projections):
            weights = torch.cat([part.weight for part in projections])
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]).to(weights.dtype)
            qkv = F.linear(x, weights, bias).chunk(3, dim=-1)  # each (rows, L, d)
        else:
            qkv = tuple(part(x) for part in projections)
            qkv = (qkv[0] + self.q_bias.to(qkv[0].dtype), qkv[1], qkv[2] + self.v_bias.to(qkv[2].dtype))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)  # (rows, heads, L, d / heads)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class SwiGLU(nn.Module):
    """w3(norm(silu(w1 x) * w2 x)) (Shazeer 2020, with EVA-02's normalisation)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.ffn_ln = LayerNorm(hidden, eps=EPS)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d). Returns the same shape."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class EvaBlock(nn.Module):
    """One pre-norm residual block: attention, then SwiGLU. `drop_path` is its rate in training."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=EPS)
        self.attn = EvaAttention(width, heads)
        self.norm2 = LayerNorm(width, eps=EPS)
        self.mlp = SwiGLU(width, mlp_width)
        self.drop_path = 0.0

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (rows, L, d); cos, sin as in :func:`rotate`. Returns (rows, L, d)."""
        rate = self.drop_path if self.training else 0.0
        x = x + drop_path(self.attn(self.norm1(x), cos, sin), rate)
        return x + drop_path(self.mlp(self.norm2(x)), rate)


class PatchEmbed(nn.Module):
    """A linear map of every patch."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, side, side). Returns (B, P, d), patches in rows."""
        return self.proj(image).flatten(2).transpose(1, 2)


class EvaVisionTransformer(nn.Module):
    """The image tower.

    Args:
        image_size: side of the square image in pixels.
        patch_size: side of a patch in pixels.
        width: d.
        layers: number of blocks.
        heads: attention heads; d / heads is a multiple of 4.
        mlp_width: hidden width of the SwiGLU perceptrons.
        output_dim: E.
        rope_grid: side of the grid that the coordinates of the rotary positions are scaled to.
        drop_path: rate of the last block in training; it grows linearly from 0 in the first.
        checkpoint: compute blocks again in the backward pass instead of keeping their activations.

    Raises:
        ValueError: the numbers do not fit together.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        output_dim: int,
        rope_grid: int = ROPE_GRID,
        drop_path: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"an image of {image_size} pixels cannot be cut into patches of {patch_size}")
        self.mlp_width = mlp_width
        self.input_resolution = image_size
        self.patch_size = patch_size
        self.width = width
        self.output_dim = output_dim
        self.heads = heads
        self.rope_grid = rope_grid
        side = image_size // patch_size
        self.patch_embed = PatchEmbed(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.blocks = nn.ModuleList(EvaBlock(width, heads, mlp_width) for _ in range(layers))
        self.norm = LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, output_dim)
        # Row 0 turns by nothing: class token and prompts. Row 1 + p is patch p.
        angles = F.pad(rotary_angles(side, width // heads, rope_grid), (0, 0, 1, 0))
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        self.set_training_options(drop_path, checkpoint)
        self.initialize_parameters()

    def set_training_options(self, drop_path: float = 0.0, checkpoint: bool = False) -> None:
        """`drop_path` and `checkpoint` of the constructor, for a tower that was loaded.

        Raises:
            ValueError: a rate outside [0, 1).
        """
        set_drop_path(self.blocks, drop_path)
        self.checkpoint = checkpoint

    def initialize_parameters(self) -> None:
        """The release's start: truncated normal 0.02, residual branches of block n divided by sqrt(2 n), small head."""
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                assert isinstance(block, EvaBlock)
                block.attn.proj.weight.div_(math.sqrt(2 * number))
                block.mlp.w3.weight.div_(math.sqrt(2 * number))
            self.head.weight.mul_(HEAD_SCALE)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations: that of the patch embedding."""
        return self.patch_embed.proj.weight.dtype

    @property
    def positions(self) -> nn.Parameter:
        """(1, 1 + P, d), the learned positions :meth:`embed` has added, row 0 the class token's."""
        return self.pos_embed

    def embed(self, image: Tensor) -> Tensor:
        """Class token and patches with their learned positions, as :meth:`clip.model.VisionTransformer.embed`."""
        check_image(image, self.input_resolution)
        x = self.patch_embed(image.to(self.dtype))  # (B, P, d)
        x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.pos_embed.to(x.dtype)

    def encode(self, tokens: Tensor, prompts: Prompts | None = None, keep: Tensor | None = None) -> Encoded:
        """Appends the prompts, runs the blocks, normalises and projects.

        Args:
            tokens: (rows, L, d) from :meth:`embed`, class token first; rows may be repeated.
            prompts: n vectors appended after the last token, without positions of any kind; deeper layers overwrite
                them at the input of their block. ``slots`` must be None.
            keep: (L - 1,) or (rows, L - 1) numbers of the patches in `tokens`, where patches were left out; None when
                all are there. The rotary positions need them.

        Returns:
            pooled (rows, E) from the class token, tokens (rows, L + n, E).

        Raises:
            ValueError: prompts of another shape, deeper than the tower, or with slots; patches were left out and
                `keep` does not say which.
        """
        if tokens.dim() != 3 or tokens.shape[-1] != self.width:
            raise ValueError(f"image tokens have shape {tuple(tokens.shape)}; expected (rows, L, {self.width})")
        x, prompts = append_prompts(tokens, prompts, len(self.blocks))
        cos, sin = self._rotary(tokens, keep, x.shape[1])
        x = self.norm(run_blocks(self.blocks, x, (cos, sin), prompts, self.checkpoint and self.training))
        # The class token is projected on its own, so that nothing goes backward through unused tokens.
        return Encoded(self.head(x[:, 0]), self.head(x))

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Encoded:
        """image: (B, 3, side, side). Returns ``encode(embed(image), prompts)``."""
        return self.encode(self.embed(image), prompts)

    def _rotary(self, tokens: Tensor, keep: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines for a sequence of `length`: class token, the patches of `tokens`, prompts."""
        rows, count, patches = tokens.shape[0], tokens.shape[1] - 1, len(self.rope_cos) - 1
        if keep is None:
            if count != patches:
                raise ValueError(f"{count} of {patches} patches are given: rotary positions need their numbers, `keep`")
            row = torch.arange(1, 1 + patches, device=tokens.device)
        else:
            if tuple(keep.shape) not in ((count,), (rows, count)):
                raise ValueError(f"keep has shape {tuple(keep.shape)}; expected ({count},) or ({rows}, {count})")
            row = keep.to(tokens.device) + 1
        row = F.pad(F.pad(row, (1, 0)), (0, length - 1 - count))  # 0, the row without a turn, for what is not a patch
        cos, sin = self.rope_cos[row], self.rope_sin[row]  # ([rows,] length, head width / 2)
        return (cos, sin) if row.dim() == 1 else (cos[:, None], sin[:, None])
