"""UperNet on a dense backbone, and prediction by sliding windows at several scales.

Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding". Both heads are transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dense.backbone import DenseBackbone
from dense.segmentation.data import IGNORED
from dense.trainer import needs


class Logits(NamedTuple):
    """(B, C, H, W) of the head, and of the auxiliary one on stride 16."""

    main: Tensor
    auxiliary: Tensor


class UperNetwork(nn.Module):
    """Backbone, UperNet's head and the auxiliary FCN head.

    Args:
        backbone: with features of strides 4 to 32.
        classes: C.
        hidden: channels of the head; the auxiliary one has half as many.

    Raises:
        ImportError: transformers is not installed.
    """

    def __init__(self, backbone: DenseBackbone, classes: int, hidden: int = 512) -> None:
        super().__init__()
        upernet = needs("transformers.models.upernet.modeling_upernet")
        config = upernet.UperNetConfig(hidden_size=hidden, auxiliary_channels=hidden // 2, num_labels=classes)
        channels = [backbone.channels] * 4
        self.backbone = backbone
        self.decode_head = upernet.UperNetHead(config, channels)
        self.auxiliary_head = upernet.UperNetFCNHead(config, channels)

    def forward(self, image: Tensor) -> Logits:
        """image: (B, 3, H, W), normalised. Returns logits of every pixel, bilinear from strides 4 and 16."""
        features = list(self.backbone(image).values())
        h, w = image.shape[-2:]
        padded = [side + -side % 32 for side in (h, w)]
        heads = (self.decode_head, self.auxiliary_head)
        maps = (F.interpolate(head(features).float(), padded, mode="bilinear") for head in heads)
        return Logits(*(one[..., :h, :w] for one in maps))


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled pixels of (B, C, H, W) against (B, H, W); 0 if there are none."""
    total = F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum")
    return total / (label != IGNORED).sum().clamp(min=1)


def starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of windows that cover `length`, the last one moved back to its end."""
    if length <= window:
        return [0]
    return sorted({*range(0, length - window, stride), length - window})


def slide(scores: Callable[[Tensor], Tensor], image: Tensor, window: Sequence[int], share: float) -> Tensor:
    """Mean scores of overlapping windows.

    Args:
        scores: (B, 3, h, w) -> (B, C, h, w).
        image: (B, 3, H, W).
        window: height and width.
        share: stride as a share of the window, in (0, 1].

    Returns:
        (B, C, H, W).
    """
    (h, w), sides = window, image.shape[-2:]
    places = [starts(side, one, max(1, int(share * one))) for side, one in zip(sides, window)]
    if len(places[0]) == len(places[1]) == 1:
        return scores(image)
    total, count = None, torch.zeros(sides, device=image.device)
    for y in places[0]:
        for x in places[1]:
            found = scores(image[..., y : y + h, x : x + w])
            total = found.new_zeros(*found.shape[:2], *sides) if total is None else total
            total[..., y : y + h, x : x + w] += found
            count[y : y + h, x : x + w] += 1
    assert total is not None
    return total / count


class View(NamedTuple):
    """Windows, scales and mirroring of pictures in an evaluation.

    Attributes:
        window: height and width of the sliding window.
        share: stride as a share of the window.
        side: shorter side that a scale of 1 means, in pixels; 0 for that of the picture.
        scales: whose probabilities are averaged.
        flip: mirrored too.
    """

    window: tuple[int, int]
    share: float = 2 / 3
    side: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def probabilities(self, scores: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Mean class probabilities (B, C, H, W) of pictures (B, 3, H, W) by logits `scores`, see :func:`slide`."""
        sides, total = image.shape[-2:], torch.zeros((), device=image.device)
        for scale in self.scales:
            factor = scale * (self.side or min(sides)) / min(sides)
            shape = [max(1, round(factor * side)) for side in sides]
            seen = image if shape == list(sides) else F.interpolate(image, shape, mode="bilinear", antialias=True)
            for mirror in (False, True)[: 1 + self.flip]:
                found = slide(scores, seen.flip(-1) if mirror else seen, self.window, self.share)
                found = F.interpolate(found.flip(-1) if mirror else found, sides, mode="bilinear")
                total = total + found.float().softmax(1)
        return total / (len(self.scales) * (1 + self.flip))
