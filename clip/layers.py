"""Layers both towers share: normalisation, activation, attention, and the transformer that takes deep prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.prompts import Prompts, check_prompts, overwrite


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, written out.

    Args:
        q, k, v: (rows, heads, L, d).
        mask: (L, L), added to the scores; None for none.

    Returns:
        (rows, heads, L, d). Holds rows * heads * L * L scores: meant for CLIP's sequences of at most about 260.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(dim=-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention by the faster of two equal ways.

    torch's fused attention, except for training in half precision on a CPU, where its backward is slow. Measured there
    on whole transformer blocks, forward and backward, 12 to 199 tokens: in bf16 autocast :func:`explicit_attention`
    makes the step 1.3 to 2.0 times as fast; in fp32 both are equal within 8 %, and the fused one keeps no scores.

    Args:
        q, k, v: (rows, heads, L, d).
        mask: (L, L), added to the scores; None for none.

    Returns:
        (rows, heads, L, d).
    """
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if needs_grad and q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        return explicit_attention(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in fp32 for half-precision input and cast back to the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d) of any floating type. Returns the same shape and type."""
        out = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return out.to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's models."""

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape. Returns the same shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``.

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
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (rows, L, d); mask: (L, L), added to the scores. Returns (rows, L, d)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (rows, L, 3 d)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 times (rows, heads, L, d / heads)
        out = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # (rows, L, d)
        return self.out_proj(out)


class Perceptron(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d). Returns the same shape."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """One pre-norm residual block: attention, then a two-layer perceptron."""

    def __init__(self, width: int, heads: int, quick_gelu: bool, mlp_width: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = Perceptron(width, mlp_width, quick_gelu)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (rows, L, d); mask: (L, L), added to the scores. Returns (rows, L, d)."""
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks and the only place deep prompts exist, for both towers.

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
        hidden = 4 * width if mlp_width is None else mlp_width
        self.resblocks = nn.Sequential(*(Block(width, heads, quick_gelu, hidden) for _ in range(layers)))

    def forward(self, x: Tensor, mask: Tensor | None = None, prompts: Prompts | None = None) -> Tensor:
        """Runs all blocks.

        Args:
            x: (rows, L, d), with ``prompts.layers[0]`` already in it.
            mask: (L, L), added to the attention scores.
            prompts: ``layers[i]``, i >= 1, overwrites ``slots`` at the input of block i unless it is None.

        Returns:
            (rows, L, d).

        Raises:
            ValueError: prompts without slots, deeper than the stack or of another shape.
        """
        if prompts is not None:
            check_prompts(prompts, x.shape[0], self.width, self.layers, "prompts")
        for i, block in enumerate(self.resblocks):
            deep = prompts.layers[i] if prompts is not None and 0 < i < len(prompts.layers) else None
            if prompts is not None and deep is not None:
                if prompts.slots is None:
                    raise ValueError("deep prompts need slots inside a transformer")
                x = overwrite(x, prompts.slots, deep)
            x = block(x, mask)
        return x


def check_image(image: Tensor, resolution: int) -> None:
    """Raises ValueError unless ``image`` is (B, 3, resolution, resolution)."""
    if image.dim() != 4 or tuple(image.shape[1:]) != (3, resolution, resolution):
        raise ValueError(f"images have shape {tuple(image.shape)}; expected (B, 3, {resolution}, {resolution})")
