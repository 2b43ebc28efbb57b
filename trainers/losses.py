"""Loss terms shared by the methods: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """Symmetric image-text cross-entropy with soft targets (CLIP, Section 2.3; targets shared among true captions).

    The target of row b is uniform over the captions that are true of image b, the target of column k uniform over the
    images caption k is true of. With the identity as `positive` this is CLIP's loss.

    Args:
        image: (B, E) L2-normalised image features.
        text: (K, E) L2-normalised text features.
        scale: scalar, the inverse temperature.
        positive: (B, K) bool, caption k is true of image b; at least one in every row and column.

    Returns:
        Scalar: mean over rows and mean over columns, averaged.

    Raises:
        ValueError: `positive` has another shape, or an image or a caption without partner.
    """
    logits = scale * image @ text.T  # (B, K)
    if positive.shape != logits.shape:
        raise ValueError(f"positive has shape {tuple(positive.shape)}, expected {tuple(logits.shape)}")
    weight = positive.to(logits.dtype)
    rows, columns = weight.sum(dim=1, keepdim=True), weight.sum(dim=0, keepdim=True)
    if bool((rows == 0).any()) or bool((columns == 0).any()):
        raise ValueError("every image and every caption of a contrastive batch needs a partner that is true of it")
    by_image = F.cross_entropy(logits, weight / rows)
    by_text = F.cross_entropy(logits.T, (weight / columns).T)
    return 0.5 * (by_image + by_text)


def normalise(feature: Tensor) -> Tensor:
    """Last axis divided by its L2 norm, in fp32."""
    return F.normalize(feature.float(), dim=-1)


def cosine_logits(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """scale * cosine similarity, (B, E) x (C, E) -> (B, C), in fp32 also where autocast would round the product."""
    with torch.autocast(image.device.type, enabled=False):
        return torch.as_tensor(scale).float() * normalise(image) @ normalise(text).T


def cosine_distance(feature: Tensor, target: Tensor) -> Tensor:
    """1 - mean cosine similarity of the rows of (C, E) and (C, E), normalised or not: a scalar in [0, 2], in fp32."""
    return 1 - (normalise(feature) * normalise(target)).sum(dim=-1).mean()
