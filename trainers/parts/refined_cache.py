"""The cache model of APE: keys compared on chosen features, values weighted; or residuals that are learned.

Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023, Section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.parts.cache_model import Cache, steps_to
from trainers.parts.losses import normalise

TINY = 1e-6  # in the divergence of a label and a prediction, as released
WIDTH = 1024  # of the features that the released numbers of chosen ones belong to
TRAINED_SIMILARITY = 0.2  # weight of the similarity between classes in fine-tuning


class Settings(NamedTuple):
    """Released settings of a data set.

    features, similarity: chosen of 1024, and weight of the similarity between classes, without training.
    trained: features chosen for fine-tuning.
    alpha: before the search.
    ends: of the search of beta, alpha and gamma.
    """

    features: int = 800
    similarity: float = 0.5
    trained: int = 900
    alpha: float = 1.0
    ends: tuple[float, float, float] = (7.0, 7.0, 1.0)


SETTINGS = {
    "DescribableTextures": Settings(400, 0.5, 700, 3.0),
    "EuroSAT": Settings(700, 0.9, 900, 1.0, (30.0, 5.0, 1.5)),
    "FGVCAircraft": Settings(800, 0.1, 900, 5.0, (20.0, 10.0, 1.0)),
    "Food101": Settings(700, 0.3, 900, 0.8),
    "ImageNet": Settings(500, 0.7, 500, 2.0, (7.0, 7.0, 0.5)),
    "OxfordFlowers": Settings(700, 0.4, 800, 3.0),
    "OxfordPets": Settings(800, 0.7, 800, 2.0),
    "StanfordCars": Settings(500, 0.6, 800, 1.0, (10.0, 7.0, 1.0)),
    "SUN397": Settings(800, 0.7, 800, 1.0, (10.0, 7.0, 1.0)),
    "UCF101": Settings(700, 0.3, 800, 2.0, (10.0, 7.0, 1.5)),
}


def choose_features(text: Tensor, count: int, weight: float, keys: Tensor | None, labels: Tensor) -> Tensor:
    """Numbers (Q,) of the `count` features that tell classes apart: high variance, low similarity between classes.

    Args:
        text: (C, E) normalised.
        weight: of the mean product of two classes' features; its complement is that of the variance over the classes.
        keys: (K, E) images that count among the classes' features beside the text; None for the text alone.
        labels: (K,) their classes.
    """
    sums, numbers = text.clone(), text.new_ones(len(text))
    if keys is not None:
        sums.index_add_(0, labels, keys)
        numbers.index_add_(0, labels, numbers.new_ones(len(labels)))
    similarity = sums.sum(dim=0).square() - sums.square().sum(dim=0)  # products of features of different classes
    pairs = numbers.sum().square() - numbers.square().sum()
    return ((1 - weight) * text.var(dim=0) - weight * similarity / pairs).topk(count).indices


class RefinedCache(Cache):
    """Without training, images and keys are compared on the features `index`, and a value counts exp(gamma * D).

    D is the divergence of its label from what the text classifier says of the key. Learned: the residual (C, Q) moves
    text and keys of each class on the features `index`, and every value has a weight; all features are compared.

    Args:
        count: Q.
        gamma: at the start.
        learned: residual and weights are fine-tuned (APE-T).
    """

    index: Tensor
    gamma: Tensor
    divergence: Tensor

    def __init__(
        self, features: Tensor, images: int, alpha: float, beta: float, gamma: float, count: int, learned: bool
    ):
        super().__init__(features, images, alpha, beta, learned=False)
        self.learned = learned
        self.register_buffer("index", torch.arange(count))
        self.register_buffer("gamma", torch.tensor(float(gamma)))
        self.register_buffer("divergence", torch.zeros(images))
        if learned:
            self.residual = nn.Parameter(torch.zeros(len(features), count))
            self.value_weight = nn.Parameter(torch.ones(images))

    def resize(self, images: int) -> None:
        super().resize(images)
        self.divergence = self.divergence.new_zeros(images)
        if self.learned:
            self.value_weight.data = self.value_weight.data.new_ones(images)

    @torch.no_grad()
    def refine(self, weight: float, text_only: bool) -> None:
        """Choose the features, and compute what weighs the values; the cache is filled."""
        keys = None if text_only else self.keys
        self.index.copy_(choose_features(self.features, len(self.index), weight, keys, self.labels))
        said = (self._reduced(self.keys) @ self._reduced(self.features).T).softmax(dim=1)
        truth = super().values()
        self.divergence.copy_((truth * torch.log2((truth + TINY) / (said + TINY))).sum(dim=1))

    def _reduced(self, feature: Tensor) -> Tensor:
        return normalise(feature[:, self.index])

    def _moved(self, feature: Tensor, label: Tensor) -> Tensor:
        return feature.index_add(1, self.index, self.residual[label])

    def affinity(self, feature: Tensor) -> Tensor:
        if self.learned:
            return feature @ self._moved(self.keys, self.labels).T
        return self._reduced(feature) @ self._reduced(self.keys).T

    def zero_shot(self, feature: Tensor) -> Tensor:
        if not self.learned:
            return feature @ self.features.T
        return feature @ self._moved(self.features, torch.arange(len(self.features), device=feature.device)).T

    def values(self) -> Tensor:
        weight = self.value_weight if self.learned else torch.exp(self.gamma * self.divergence)
        return super().values() * weight[:, None]

    @torch.no_grad()
    def search(
        self, image: Tensor, label: Tensor, scale: Tensor | float, ends: Sequence[float], steps: Sequence[int]
    ) -> int:
        """As `Cache.search`; without training also of gamma, from 0 up to its end, in the inner loop."""
        if self.learned:
            return super().search(image, label, scale, ends[:2], steps[:2])
        betas, alphas = (steps_to(end, count, self.keys.device) for end, count in zip(ends[:2], steps))
        gammas, hits = steps_to(ends[2], steps[2], self.keys.device, 0.0), []
        for gamma in gammas:
            self.gamma.copy_(gamma)
            hits.append(self.correct(image, label, scale, alphas, betas))
        found = torch.stack(hits, dim=-1)  # (betas, alphas, gammas)
        first = int((found == found.max()).flatten().nonzero()[0])
        self.gamma.copy_(gammas[first % len(gammas)])
        self.alpha.copy_(alphas[first // len(gammas) % len(alphas)])
        self.beta.copy_(betas[first // len(gammas) // len(alphas)])
        return int(found.max())
