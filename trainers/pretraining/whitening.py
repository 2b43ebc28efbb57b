"""Projections of a random CLIP that whiten its features, so that contrastive training from scratch starts at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clip import CLIP


def whitening(feature: Tensor, out: int, floor: float = 1e-2) -> Tensor:
    """Linear map (d, out) after which features (K, d) are uncorrelated, of equal size and without their common part.

    The mean direction is projected out (a projection has no bias), and eigenvalues of the covariance below `floor`
    times the largest are raised to it. Components beyond the rank are random.
    """
    mean = feature.mean(dim=0)
    direction = mean / mean.norm()
    rest = feature - (feature @ direction)[:, None] * direction  # without the mean direction
    centred = rest - rest.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(feature))
    white = vectors * values.clamp(min=floor * float(values[-1])).rsqrt()  # (d, d)
    white = white - direction[:, None] * (direction @ white)[None, :]
    rotation = torch.linalg.qr(torch.randn(white.shape[1], max(out, white.shape[1])).T)[0].T
    return white @ rotation[:, :out] / math.sqrt(out)


@torch.no_grad()
def whiten_projections(model: CLIP, image: Tensor, ids: Tensor) -> None:
    """Replaces both projections of a random model by whitening maps of its own features on one batch."""
    for tower, name, encode in (
        (model.visual, "proj", lambda: model.encode_image(image)),
        (model, "text_projection", lambda: model.encode_text(ids)),
    ):
        old = getattr(tower, name)
        width, out = old.shape
        setattr(tower, name, nn.Parameter(torch.eye(width, device=old.device)))
        feature = encode().pooled.float().cpu()
        setattr(tower, name, nn.Parameter(whitening(feature, out).to(old)))
