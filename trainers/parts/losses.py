"""Loss terms shared by the methods: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def matching_loss(query: Tensor, key: Tensor, scale: Tensor, positive: Tensor | int) -> Tensor:
    """Cross-entropy of finding the partner of each query among the keys, a scalar in fp32, also under autocast.

    Args:
        query: (B, E) L2-normalised.
        key: (K, E) L2-normalised.
        scale: scalar, the inverse temperature.
        positive: (B, K) bool, the partners, which share the target equally; at least one for each query. Or an integer:
            the partner of query b is key `positive` + b.

    Raises:
        ValueError: `positive` has another shape, or (on a CPU) a query has no partner.
    """
    with torch.autocast(query.device.type, enabled=False):  # logits go up to 100, where bfloat16 has steps of 0.5
        logits = scale.float() * query.float() @ key.float().T  # (B, K)
        if isinstance(positive, int):
            return F.cross_entropy(logits, torch.arange(positive, positive + len(query), device=query.device))
        if positive.shape != logits.shape:
            raise ValueError(f"positive has shape {tuple(positive.shape)}, expected {tuple(logits.shape)}")
        weight = positive.to(logits.dtype)
        partners = weight.sum(dim=1, keepdim=True)
        if positive.device.type == "cpu" and bool(
            (partners == 0).any()
        ):  # elsewhere the loss becomes NaN, without a wait
            raise ValueError("every image and every caption of a contrastive batch needs a partner that is true of it")
        return F.cross_entropy(logits, weight / partners)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None = None) -> Tensor:
    """Symmetric image-text cross-entropy with soft targets (CLIP, Section 2.3; targets shared among true captions).

    The target of row b is uniform over the captions that are true of image b, the target of column k uniform over the
    images caption k is true of. With the identity as `positive` this is CLIP's loss.

    Args:
        image: (B, E) L2-normalised image features.
        text: (K, E) L2-normalised text features.
        scale: scalar, the inverse temperature.
        positive: (B, K) bool, caption k is true of image b; at least one in every row and column. None: the identity.

    Returns:
        Scalar: mean over rows and mean over columns, averaged.

    Raises:
        ValueError: `positive` has another shape, or an image or a caption without partner.
    """
    return global_contrastive_loss(image, text, image, text, scale, positive, 0)


def global_contrastive_loss(
    image: Tensor,
    text: Tensor,
    all_image: Tensor,
    all_text: Tensor,
    scale: Tensor,
    positive: Tensor | None,
    start: int,
) -> Tensor:
    """The part that one process has in `contrastive_loss` of a batch spread over processes.

    The mean over the processes is the loss of the whole batch; a process computes the similarities of its own rows
    only. A caption of another process counts as false.

    Args:
        image: (B, E) L2-normalised, of this process.
        text: (K, E), its captions.
        all_image: (B * processes, E) images of all processes in order, with gradients.
        all_text: (K * processes, E).
        scale: scalar.
        positive: (B, K) as in `contrastive_loss`, within this process; None: the identity.
        start: number of this process.
    """
    rows: Tensor | int = start * len(image)
    columns: Tensor | int = start * len(text)
    if positive is not None:
        rows = positive.new_zeros(len(image), len(all_text))
        columns = positive.new_zeros(len(text), len(all_image))
        if positive.shape != (len(image), len(text)):
            raise ValueError(f"positive has shape {tuple(positive.shape)}, expected {(len(image), len(text))}")
        rows[:, start * len(text) :][:, : len(text)] = positive
        columns[:, start * len(image) :][:, : len(image)] = positive.T
    elif len(image) != len(text):
        raise ValueError(f"{len(image)} images and {len(text)} captions: expected pairs, or `positive`")
    return 0.5 * (matching_loss(image, all_text, scale, rows) + matching_loss(text, all_image, scale, columns))


def mean_patch(tokens: Tensor) -> Tensor:
    """Mean direction of the projected patches of each image, (B, 1 + P, E) with the class token first -> (B, E).

    Every patch counts by its direction alone, as in methods that compare normalised patches with text; the product with
    a text feature is, up to the length of the mean, the mean cosine of the patches.

    Raises:
        ValueError: there is no patch beside the class token.
    """
    if tokens.dim() != 3 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected (B, 1 + P, E) with at least one patch")
    return normalise(normalise(tokens[:, 1:]).mean(dim=1))


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


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 * cross-entropy of logits (B, C) with soft targets, mean over images (Hinton et al., 2015, Section 2).

    Both are logits, whose softmax is taken at temperature T. The targets get a gradient, too, unless they are detached.
    """
    return temperature**2 * F.cross_entropy(logits / temperature, (target / temperature).softmax(dim=1))
