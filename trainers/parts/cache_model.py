"""The cache model of Tip-Adapter: features and labels of training images beside the classifier of zero-shot CLIP.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, Section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.parts.losses import normalise
from trainers.parts.prompts import FixedText

BLOCK = 1 << 24  # entries of the largest tensor of the search


def steps_to(end: float, count: int, device: torch.device, start: float = 0.1) -> Tensor:
    """`count` values from `start` up to `end`, which is left out."""
    return torch.tensor([start + i * (end - start) / count for i in range(count)], device=device)


class Cache(FixedText):
    """Keys (K, E), one per training image, with their labels (K,), and the weights alpha and beta of the cache.

    Training uses the alpha and beta of the start, evaluation those that the search has found.

    Args:
        features: (C, E) classifier of the templates.
        images: K.
        alpha, beta: at the start.
        learned: the keys are fine-tuned.
    """

    class_bound = True
    keys: Tensor
    labels: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, features: Tensor, images: int, alpha: float, beta: float, learned: bool):
        super().__init__(features)
        self.start = (alpha, beta)
        keys = torch.zeros(images, features.shape[1])
        if learned:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.zeros(images, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    @torch.no_grad()
    def fill(self, feature: Tensor, label: Tensor) -> None:
        """Keys and labels (K,) from features (V, K, E) of V views of each image: the normalised mean of its views."""
        self.keys.copy_(normalise(feature.mean(dim=0)))
        self.labels.copy_(label)

    def resize(self, images: int) -> None:
        """Make room for the keys of another number of images."""
        self.keys.data = self.keys.new_zeros(images, self.keys.shape[1])
        self.labels = self.labels.new_zeros(images)

    def values(self) -> Tensor:
        """(K, C) one-hot labels."""
        classes = torch.arange(len(self.features), device=self.labels.device)
        return (self.labels[:, None] == classes).to(self.keys.dtype)

    def affinity(self, feature: Tensor) -> Tensor:
        """Similarity (B, K) of normalised features (B, E) to the keys."""
        return feature @ self.keys.T

    def zero_shot(self, feature: Tensor) -> Tensor:
        """Cosines (B, C) of normalised features (B, E) and classes."""
        return feature @ self.features.T

    def logits(self, image: Tensor, scale: Tensor | float) -> Tensor:
        """scale * f W + alpha * exp(-beta * (1 - f F)) V for the normalised features f of images (B, E): (B, C)."""
        alpha, beta = self.start if self.training else (self.alpha, self.beta)
        with torch.autocast(image.device.type, enabled=False):
            feature = normalise(image)
            cached = torch.exp(-beta * (1 - self.affinity(feature))) @ self.values()
            return scale * self.zero_shot(feature) + alpha * cached

    @torch.no_grad()
    def correct(self, image: Tensor, label: Tensor, scale: Tensor | float, alphas: Tensor, betas: Tensor) -> Tensor:
        """Number of images (V, E) put into their class, for every pair of the given weights: (betas, alphas)."""
        found = torch.zeros(len(betas), len(alphas), dtype=torch.long, device=image.device)
        values = self.values()
        rows = max(1, BLOCK // max(len(alphas) * len(self.features), len(self.keys)))
        for part, truth in zip(normalise(image).split(rows), label.split(rows)):
            zero_shot, affinity = scale * self.zero_shot(part), self.affinity(part)
            for i, beta in enumerate(betas):
                cached = torch.exp(-beta * (1 - affinity)) @ values  # (rows, C)
                logits = zero_shot + alphas[:, None, None] * cached  # (alphas, rows, C)
                found[i] += (logits.argmax(dim=-1) == truth).sum(dim=1)
        return found

    @torch.no_grad()
    def search(
        self,
        image: Tensor,
        label: Tensor,
        scale: Tensor | float,
        ends: Sequence[float],
        steps: Sequence[int],
    ) -> int:
        """Set alpha and beta to the first pair with the most hits, beta in the outer loop (released code).

        Args:
            image: features (V, E).
            label: (V,) their classes.
            scale: weight of the zero-shot logits.
            ends: of beta and of alpha. Both go from 0.1 up to their end, which is left out.
            steps: numbers of values of beta and of alpha.

        Returns:
            Number of images that the pair puts into their class.
        """
        betas, alphas = (steps_to(end, count, self.keys.device) for end, count in zip(ends, steps))
        hits = self.correct(image, label, scale, alphas, betas)
        first = int((hits == hits.max()).flatten().nonzero()[0])
        self.beta.copy_(betas[first // len(alphas)])
        self.alpha.copy_(alphas[first % len(alphas)])
        return int(hits.max())
