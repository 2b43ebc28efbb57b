"""A CLIP's image tower as a backbone of dense tasks: features at strides 4, 8, 16 and 32 of images of any size.

The pyramid is ViTDet's simple one (Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection",
section 3 and appendix A.2): all levels are made of the tower's last features. Blocks, drop path and recomputation are
those of `clip`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

import clip
from clip import CLIP
from clip.eva import EvaVisionTransformer, rotary_angles
from clip.layers import run_blocks
from clip.model import VisionTransformer
from trainers.parts.parameter_groups import heights, shared_groups

Tower = VisionTransformer | EvaVisionTransformer
STRIDES = (4, 8, 16, 32)
LEVELS = tuple(f"p{stride.bit_length() - 1}" for stride in STRIDES)  # p2 ... p5


def image_tower(model: str | Path | CLIP | Tower) -> Tower:
    """The image tower of a checkpoint's name or path, of a CLIP, or itself.

    Raises:
        ValueError: it is a ResNet or a tower of another library.
    """
    if isinstance(model, (str, Path)):
        model = clip.load(model)[0]
    tower: Any = getattr(model, "visual", model)
    if not isinstance(tower, Tower):
        raise ValueError(
            f"the image tower is a {getattr(tower, 'kind', type(tower).__name__)}; a dense backbone needs one of "
            "CLIP's own vision transformers (OpenAI's ViTs, EVA, a UTA student, the embedded models)"
        )
    return tower


def resized_positions(tower: Tower, h: int, w: int) -> Tensor:
    """Learned positions (1 + h w, d) of h x w patches, row 0 the class token's; bicubic for another grid."""
    table = tower.positions.flatten(0, -2)  # (1 + P, d)
    side = math.isqrt(len(table) - 1)
    if (h, w) == (side, side):
        return table
    grid = table[1:].T.unflatten(1, (side, side))[None]  # (1, d, side, side)
    grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T])


class WindowAttention(nn.Module):
    """Self-attention within windows of `size` x `size` patches, padded with zeros at the right and the bottom.

    Attributes:
        grid: rows and columns of patches of the next call.
    """

    grid = (0, 0)

    def __init__(self, attention: nn.Module, size: int) -> None:
        super().__init__()
        self.inner, self.size = attention, size

    def forward(self, x: Tensor, *extra: Any) -> Tensor:
        """x: (B, h w, d), patches in rows; tensors of `extra` are (h w, k). Returns (B, h w, d)."""
        rows, (h, w), size = len(x), self.grid, self.size
        cut = [
            self.split(x),
            *(self.split(e.expand(rows, -1, -1))[:, None] if isinstance(e, Tensor) else e for e in extra),
        ]
        out = self.inner(*cut)  # (B windows, size^2, d)
        tall, wide = -(-h // size), -(-w // size)
        out = out.view(rows, tall, wide, size, size, -1).transpose(2, 3).reshape(rows, tall * size, wide * size, -1)
        return out[:, :h, :w].reshape(rows, h * w, -1)

    def split(self, x: Tensor) -> Tensor:
        """Windows (B windows, size^2, k) of (B, h w, k)."""
        (h, w), size = self.grid, self.size
        x = F.pad(x.unflatten(1, (h, w)), (0, 0, 0, -w % size, 0, -h % size))
        return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).reshape(-1, size * size, x.shape[-1])


def level(width: int, channels: int, factor: float) -> nn.Sequential:
    """One level of the simple feature pyramid: (B, width, h, w) -> (B, channels, factor h, factor w).

    Args:
        factor: a power of two; above 1 by transposed convolutions, below 1 by max pooling.
    """
    steps: list[nn.Module] = []
    if factor < 1:
        steps.append(nn.MaxPool2d(round(1 / factor)))
    for step in range(round(math.log2(max(1, factor)))):
        steps += [LayerNorm2d(width), nn.GELU()] if step else []
        steps.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    steps += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    steps += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*steps)


@lru_cache(maxsize=16)
def _rotary(h: int, w: int, head_width: int, grid: int) -> tuple[Tensor, Tensor]:
    angles = rotary_angles((h, w), head_width, grid)
    return angles.cos(), angles.sin()


class DenseBackbone(nn.Module):
    """Image tower and simple feature pyramid.

    Args:
        model: name or path of a checkpoint that `clip.load` takes, a CLIP, or its image tower, which is changed.
        channels: of every level.
        patch_size: side of a patch in pixels, 4, 8, 16 or 32; None keeps the tower's, or takes the nearest of these if
            it is another (14 becomes 16). The kernel of another size is resampled by timm (FlexiViT).
        window: side of the attention windows in patches; 0 for attention to the whole image in every block. With
            windows, the last block of each quarter of the tower still attends to all, and there is no class token.
        drop_path: rate of stochastic depth of the last block; it grows linearly from 0 in the first.
        checkpoint: compute blocks again in the backward pass instead of keeping their activations.

    Attributes:
        channels: of every level. tower: the image tower, whose final norm is applied and whose projection is not.

    Raises:
        ValueError: numbers out of range, or a tower that is not one of CLIP's own vision transformers.
        ImportError: a kernel is to be resampled without timm.
    """

    def __init__(
        self,
        model: str | Path | CLIP | Tower,
        channels: int = 256,
        patch_size: int | None = None,
        window: int = 0,
        drop_path: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        tower = image_tower(model).float()
        nearest = min(STRIDES, key=lambda side: abs(math.log(side / tower.patch_size)))
        patch = nearest if patch_size is None else patch_size
        if patch not in STRIDES:
            raise ValueError(f"patch_size is {patch}, expected one of {', '.join(map(str, STRIDES))}")
        if window < 0:
            raise ValueError(f"window is {window}, expected 0 or more patches")
        self.tower, self.channels, self.patch_size, self.checkpoint = tower, channels, patch, checkpoint
        tower.requires_grad_(True)
        for unused in self._projection():
            unused.requires_grad_(False)
        tower.set_training_options(drop_path)
        self._resample(patch)
        count = len(tower.blocks)
        whole = {count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)}
        self.windows = [number for number in range(count) if window and number not in whole]
        for number in self.windows:
            block: Any = tower.blocks[number]
            block.attn = WindowAttention(block.attn, window)
        if self.windows:
            self._class_token().requires_grad_(False)
        self.levels = nn.ModuleDict(
            {name: level(tower.width, channels, patch / stride) for name, stride in zip(LEVELS, STRIDES)}
        )

    def _convolution(self) -> nn.Conv2d:
        return self.tower.conv1 if isinstance(self.tower, VisionTransformer) else self.tower.patch_embed.proj

    def _class_token(self) -> nn.Parameter:
        return self.tower.class_embedding if isinstance(self.tower, VisionTransformer) else self.tower.cls_token

    def _projection(self) -> list[nn.Parameter]:
        tower = self.tower
        return [tower.proj] if isinstance(tower, VisionTransformer) else list(tower.head.parameters())

    def _resample(self, patch: int) -> None:
        convolution = self._convolution()
        if patch == convolution.kernel_size[0]:
            return
        try:
            from timm.layers import resample_patch_embed
        except ImportError as err:
            raise ImportError(
                f"the tower has patches of {convolution.kernel_size[0]} pixels and gets some of {patch}, which needs "
                "timm: pip install -r requirements-dense.txt"
            ) from err
        kernel = resample_patch_embed(convolution.weight.detach(), [patch, patch])
        convolution.weight = nn.Parameter(kernel)
        convolution.kernel_size = convolution.stride = (patch, patch)
        self.tower.patch_size = patch

    def encode(self, image: Tensor, values: bool = False) -> Tensor:
        """Patches after the final norm.

        Args:
            image: (B, 3, H, W), normalised; H and W are multiples of the patch size.
            values: the last block's attention lets every patch see itself only, so that it mixes nothing: the values
                of MaskCLIP (Zhou et al. 2022).

        Returns:
            (B, d, H / patch_size, W / patch_size).
        """
        tower = self.tower
        x = self._convolution()(image)
        h, w = x.shape[-2:]
        first = int(not self.windows)  # class tokens
        x = x.flatten(2).transpose(1, 2)  # (B, P, d)
        if first:
            x = torch.cat([self._class_token().view(1, 1, -1).expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        x = x + resized_positions(tower, h, w)[1 - first :].to(x.dtype)
        extra: tuple[Any, ...] = ()
        if isinstance(tower, VisionTransformer):
            x = tower.ln_pre(x)
        else:
            cos, sin = _rotary(h, w, tower.width // tower.heads, tower.rope_grid)
            turn = F.pad(cos, (0, 0, first, 0), value=1.0), F.pad(sin, (0, 0, first, 0))
            extra = tuple(part.to(x.device) for part in turn)
        for number in self.windows:
            windowed: Any = tower.blocks[number]
            windowed.attn.grid = (h, w)
        blocks: list[Any] = list(tower.blocks)
        x = run_blocks(blocks[:-1] if values else blocks, x, extra, None, self.checkpoint and self.training)
        x = x[:, first:]
        if values:
            alone = tuple(part[:1] for part in extra)  # a turn changes nothing where one position sees one
            x = blocks[-1](x.reshape(-1, 1, tower.width), *alone).view_as(x)
        x = tower.ln_post(x) if isinstance(tower, VisionTransformer) else tower.norm(x)
        return x.transpose(1, 2).unflatten(2, (h, w))

    def tokens(self, image: Tensor, values: bool = False) -> Tensor:
        """Patches in the space of image and text, not normalised: (B, E, h, w); arguments as :meth:`encode`."""
        x = self.encode(image, values).permute(0, 2, 3, 1)
        x = x @ self.tower.proj.to(x.dtype) if isinstance(self.tower, VisionTransformer) else self.tower.head(x)
        return x.permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Features of four strides.

        Args:
            image: (B, 3, H, W), normalised; padded with zeros at the right and the bottom to multiples of 32 pixels.

        Returns:
            {"p2", "p3", "p4", "p5"}: (B, channels, H' / s, W' / s) for s = 4, 8, 16, 32, of the padded size.
        """
        h, w = image.shape[-2:]
        x = self.encode(F.pad(image, (0, -w % STRIDES[-1], 0, -h % STRIDES[-1])))
        return {name: make(x) for name, make in self.levels.items()}


def layer_decay_groups(network: nn.Module, lr: float, weight_decay: float, decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups of a network around a DenseBackbone, as BEiT and ViTDet have them.

    Pyramid and heads learn with lr, block i of n with lr * decay ** (n - i), what comes before the blocks with
    lr * decay ** (n + 1). Vectors, scalars and the positions have no weight decay.
    """
    share: dict[nn.Parameter, float] = {}
    free = []
    for module in network.modules():
        if isinstance(module, DenseBackbone):
            known = dict(module.tower.named_parameters())
            share |= {known[name]: decay**height for name, height in heights(module.tower)}
            free.append(module.tower.positions)
    return shared_groups(network, share, lr, weight_decay, free)
