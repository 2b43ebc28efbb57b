"""The ResNet image tower of CLIP: three-convolution stem, anti-aliased strides, attention pooling.

Parameter names are those of OpenAI's release.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from clip.layers import attend, attention_weights, check_image
from clip.prompts import Encoded, Prompts

EXPANSION = 4
"""Output channels of a bottleneck over its inner channels."""
REDUCTION = 32
"""Pixels of the input per position of the last map, and channels of the last map per channel of the first stage."""


class Bottleneck(nn.Module):
    """Residual block of three convolutions; a stride is an average pooling before the last one and in the shortcut.

    Args:
        inputs: channels of the input.
        inner: channels inside; the output has ``EXPANSION`` times as many.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            parts: list[tuple[str, nn.Module]] = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                ("1", nn.BatchNorm2d(outputs)),
            ]
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, h, w). Returns (B, outputs, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


class AttentionPool2d(nn.Module):
    """One attention layer over the positions of the last map and their mean; every position is a query.

    Args:
        side: side of the map.
        width: d, its channels.
        heads: attention heads.
        output_dim: E.
    """

    def __init__(self, side: int, width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"a width of {width} cannot be divided into {heads} heads")
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1 + side**2, width) * width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (rows, L, d) with positions added. Returns (rows, L, E)."""
        q, k, v = (self._by_head(part(x)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.c_proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def maps(self, x: Tensor) -> Tensor:
        """Softmax weights (rows, heads, L, L) of :meth:`forward`."""
        return attention_weights(self._by_head(self.q_proj(x)), self._by_head(self.k_proj(x)))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (rows, heads, L, d / heads)


class ModifiedResNet(nn.Module):
    """The ResNet image tower; it takes no prompts.

    Args:
        layers: blocks of the four stages.
        output_dim: E.
        heads: heads of the attention pool.
        input_resolution: side of the square image in pixels.
        width: channels of the first stage; the tokens are 32 times as wide.
    """

    def __init__(
        self, layers: tuple[int, ...], output_dim: int, heads: int, input_resolution: int = 224, width: int = 64
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise ValueError(f"a ResNet tower has four stages; got depths {layers}")
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.width = width * REDUCTION
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(EXPANSION * width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(EXPANSION * 2 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(EXPANSION * 4 * width, 8 * width, layers[3], stride=2)
        self.attnpool = AttentionPool2d(input_resolution // REDUCTION, self.width, heads, output_dim)

    def initialize_parameters(self) -> None:
        """Draws the attention pool with the width's scale and lets every residual branch start at zero (OpenAI)."""
        for part in (self.attnpool.q_proj, self.attnpool.k_proj, self.attnpool.v_proj, self.attnpool.c_proj):
            nn.init.normal_(part.weight, std=self.width**-0.5)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations: that of the first convolution."""
        return self.conv1.weight.dtype

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return self.attnpool.heads

    def embed(self, image: Tensor) -> Tensor:
        """The last map and its mean, with positions: what the attention pool reads.

        Args:
            image: (B, 3, input_resolution, input_resolution), normalised by the model's preprocessing.

        Returns:
            (B, 1 + P, d), row 0 the mean of the P map positions.

        Raises:
            ValueError: another image size or number of channels.
        """
        check_image(image, self.input_resolution)
        x = image.to(self.conv1.weight.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.relu(norm(conv(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))  # (B, d, side, side)
        x = x.flatten(2).transpose(1, 2)  # (B, P, d)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        return x + self.attnpool.positional_embedding.to(x.dtype)

    def encode(self, tokens: Tensor, prompts: Prompts | None = None, keep: Tensor | None = None) -> Encoded:
        """Attention pooling.

        Args:
            tokens: (rows, L, d) from :meth:`embed`, the mean first; map positions may be left out and rows repeated.
            prompts: must be None.
            keep: numbers of the map positions in `tokens`; not needed, because the tokens carry their positions.

        Returns:
            pooled (rows, E) from the mean, tokens (rows, L, E), row 0 the pooled one.

        Raises:
            ValueError: prompts were given: there is no transformer they could enter.
        """
        if prompts is not None:
            raise ValueError("a ResNet image tower takes no prompts; use a ViT backbone or prompt the text only")
        if tokens.dim() != 3 or tokens.shape[-1] != self.width:
            raise ValueError(f"image tokens have shape {tuple(tokens.shape)}; expected (rows, L, {self.width})")
        out = self.attnpool(tokens)
        return Encoded(out[:, 0], out)

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Encoded:
        """image: (B, 3, side, side). Returns ``encode(embed(image), prompts)``."""
        return self.encode(self.embed(image), prompts)


def _stage(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(EXPANSION * inner, inner) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, inner, stride), *rest)
