"""Alignment of tokens in Unmasked Token Alignment: the student, what the teacher says, and the loss between both.

Liu et al., "Enhancing Vision-Language Model with Unmasked Token Alignment", TMLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip.eva import EvaVisionTransformer
from clip.model import VisionTransformer
from trainers.parts.losses import cosine_distance
from trainers.parts.masking import gather_tokens, left_out, mask_tokens

Tower = VisionTransformer | EvaVisionTransformer


class Aligned(NamedTuple):
    """Student features of a batch: class tokens (B, E), and patches (B, K, E) with their numbers (B, K)."""

    pooled: Tensor
    tokens: Tensor
    patches: Tensor


class Targets(NamedTuple):
    """Teacher features of a batch, not normalised: class tokens (B, E) and patches (B, P, E)."""

    pooled: Tensor
    tokens: Tensor


class Student(nn.Module):
    """The image tower that learns, and the mask token of the objective that has one.

    Args:
        visual: a vision transformer.
        objective: "unmasked" or "mask_tokens".
    """

    def __init__(self, visual: Tower, objective: str):
        super().__init__()
        self.visual = visual
        self.mask = nn.Parameter(0.02 * torch.randn(visual.width)) if objective == "mask_tokens" else None

    def forward(self, image: Tensor, keep: Tensor) -> Aligned:
        """Features of images (B, 3, H, W) of which the patches `keep` (B, K) are seen.

        Without a mask token the other patches are left out, and the K patches are aligned. With one it stands in their
        place, and the P - K places where it stands are aligned (EVA-02's masked image modelling).
        """
        tokens = self.visual.embed(image)
        if self.mask is None:
            encoded = self.visual.encode(gather_tokens(tokens, keep), keep=keep)
            return Aligned(encoded.pooled, encoded.tokens[:, 1:], keep)
        tokens = mask_tokens(tokens, keep, self.mask, self.visual.positions)
        hidden = left_out(keep, tokens.shape[1] - 1)
        encoded = self.visual.encode(tokens)
        return Aligned(encoded.pooled, gather_tokens(encoded.tokens, hidden)[:, 1:], hidden)


def alignment_losses(student: Aligned, teacher: Targets, class_weight: float, token_weight: float) -> dict[str, Tensor]:
    """1 - cosine similarity per token, averaged over the tokens of an image and over images.

    L = sum_i w_i (1 - cos(student_i, teacher_i)) / sum_i w_i over the class token, of weight `class_weight`, and the
    aligned patches, each of weight `token_weight`. Both weights 1 are the objective of the paper, 1 - its mean cosine.

    Args:
        student: (B, E), (B, K, E) and the numbers of the K patches.
        teacher: (B, E) and (B, P, E) of the whole image.
        class_weight, token_weight: at least 0, one of them above 0.

    Returns:
        The two parts of L, "class" and "tokens", without those of weight 0.
    """
    count = student.tokens.shape[1]
    total = class_weight + token_weight * count
    terms = {}
    if class_weight > 0:
        terms["class"] = class_weight / total * cosine_distance(student.pooled, teacher.pooled)
    if token_weight > 0 and count > 0:
        places = student.patches[:, :, None].expand(-1, -1, teacher.tokens.shape[-1])
        terms["tokens"] = (
            token_weight * count / total * cosine_distance(student.tokens, teacher.tokens.gather(1, places))
        )
    return terms


class TargetCache:
    """Teacher features of the images of a data set, computed when an image is first seen.

    Args:
        count: images of the data set.
        compute: images (B, 3, H, W) -> Targets.
    """

    def __init__(self, count: int, compute: Callable[[Tensor], Targets]):
        self.compute = compute
        self.known = torch.zeros(count, dtype=torch.bool)
        self.features: Targets | None = None

    def __call__(self, image: Tensor, index: Tensor) -> Targets:
        """Targets of images whose numbers in the data set are `index` (B,)."""
        new = ~self.known[index]
        if bool(new.any()):
            found = self.compute(image[new.nonzero()[:, 0].to(image.device, non_blocking=True)])
            if self.features is None:
                count = len(self.known)
                self.features = Targets(*(torch.empty(count, *part.shape[1:], dtype=part.dtype) for part in found))
            for store, part in zip(self.features, found):
                store[index[new]] = part.cpu()
            self.known[index[new]] = True
        assert self.features is not None
        return Targets(*(store[index].to(image.device, non_blocking=True) for store in self.features))
