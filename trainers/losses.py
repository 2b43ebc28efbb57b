"""Loss terms shared by the methods: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, image_label: Tensor, text_label: Tensor) -> Tensor:
    """Symmetric image-text cross-entropy with soft targets (CLIP, Section 2.3; targets shared among equal labels).

    Row i of the similarity matrix is matched to all captions with the label of image i, each with equal weight, and
    the same for the columns; with distinct labels this is CLIP's loss.

    Args:
        image: (B, E) L2-normalised image features.
        text: (K, E) L2-normalised text features.
        scale: scalar, the inverse temperature.
        image_label: (B,) and text_label: (K,) labels; an image and a caption of one label are a positive pair. Every
            label must occur on both sides.

    Returns:
        Scalar: mean over rows and mean over columns, averaged.

    Raises:
        ValueError: a label has no partner on the other side.
    """
    logits = scale * image @ text.T  # (B, K)
    positive = (image_label[:, None] == text_label[None, :]).to(logits.dtype)
    rows, columns = positive.sum(dim=1, keepdim=True), positive.sum(dim=0, keepdim=True)
    if bool((rows == 0).any()) or bool((columns == 0).any()):
        raise ValueError("every label must occur among the images and among the captions of a contrastive batch")
    by_image = F.cross_entropy(logits, positive / rows)
    by_text = F.cross_entropy(logits.T, (positive / columns).T)
    return 0.5 * (by_image + by_text)


def normalise(feature: Tensor) -> Tensor:
    """Last axis divided by its L2 norm, in fp32."""
    return F.normalize(feature.float(), dim=-1)


def cosine_logits(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """scale * cosine similarity, (B, E) x (C, E) -> (B, C), in fp32."""
    return torch.as_tensor(scale).float() * normalise(image) @ normalise(text).T
