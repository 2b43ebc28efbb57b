"""The cache models of Tip-Adapter and APE: features and labels of training images beside zero-shot CLIP's classifier.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, Section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


# APE (Zhu et al., ICCV 2023, Section 3): keys compared on chosen features, values weighted; or residuals learned

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
