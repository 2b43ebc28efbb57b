"""Parts of test-time methods: sure views of an image, their entropy, and caches of the images seen so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax: (V, C) -> (V,)."""
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


def confident(logits: Tensor, share: float) -> Tensor:
    """Numbers of the views (V, C) with the lowest entropy: `share` of them, rounded down, at least one."""
    return entropy(logits).argsort()[: max(1, int(share * len(logits)))]


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Entropy in nats of the mean of the rows' softmax, a scalar (TPT)."""
    mean = logits.log_softmax(dim=1).logsumexp(dim=0) - math.log(len(logits))
    return -(mean.exp() * mean).sum()


class Queue:
    """At most S images of each predicted class, those of the lowest entropy: features (C, S, E) with values (C, S, C).

    Nothing here waits for a device: an empty place has infinite entropy and counts nothing.
    """

    def __init__(self, classes: int, size: int, width: int, device: torch.device):
        self.keys = torch.zeros(classes, size, width, device=device)
        self.values = torch.zeros(classes, size, classes, device=device)
        self.entropy = torch.full((classes, size), math.inf, device=device)

    def put(self, label: Tensor, key: Tensor, value: Tensor, entropy: Tensor, allowed: Tensor) -> None:
        """Take an image in, in an empty place of its class or that of the highest entropy, if its own is lower."""
        row = label.reshape(1)  # an index without axes would be read by the host
        place = self.entropy[row].argmax(dim=1)
        better = allowed & (entropy < self.entropy[row, place])  # (1,)
        self.keys[row, place] = torch.where(better[:, None], key, self.keys[row, place])
        self.values[row, place] = torch.where(better[:, None], value, self.values[row, place])
        self.entropy[row, place] = torch.where(better, entropy, self.entropy[row, place])

    def logits(self, feature: Tensor, sharpness: float) -> Tensor:
        """Sum over the images of exp(-sharpness * (1 - cosine)) times their values: (C,)."""
        near = torch.exp(-sharpness * (1 - self.keys @ feature)) * self.entropy.isfinite()
        return torch.einsum("cs,csk->k", near, self.values)
