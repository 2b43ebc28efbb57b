"""Options that PLOT and PLOT++ have for transport, and the score by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers.parts.modes import mode_similarity
from transport.scores import plot_scores
from transport.sinkhorn import THRESHOLDS, entropies, normalized

PLOT_OPTIONS = {
    "LAMBDA": 0.1,  # entropic weight
    "MAX_ITER": 100,  # Sinkhorn iterations at most
    "STOP": "marginal",  # marginal: each pair stops by itself; scaling_change: all pairs of a batch together (released)
    "THRESHOLD": None,  # Sinkhorn stops below this error; None = 1e-3 (marginal), 1e-2 (scaling_change)
}
"""Options that every method with `plot_scores` has, and their defaults."""
PLOT_RULES = {
    "LAMBDA": (lambda value: value > 0, "a number above 0"),
    "MAX_ITER": (lambda value: value >= 1, "at least 1"),
    "STOP": (THRESHOLDS.__contains__, f"one of {', '.join(THRESHOLDS)}"),
    "THRESHOLD": (lambda value: value is None or value > 0, "a number above 0, or None"),
}
"""Checks of these options, for `CLIPTrainer.check_options`."""


class SetTransport:
    """`plot_scores` with a method's options: (image_set, text_set, scale) -> scores (B, C).

    `metrics` holds the entropy of the last call's plans, 1 = uniform, and the mean cosine between the sentences of a
    class, so that a log shows what transport and modes add.

    Args:
        options: the method's config node.
        definition: computes scores and plans in the place of `plot_scores`.
    """

    def __init__(self, options: CfgNode, definition: Callable[..., tuple[Tensor, Tensor]] | None = None):
        self.definition = definition
        self.settings = {
            "reg": options.LAMBDA,
            "max_iter": options.MAX_ITER,
            "threshold": options.THRESHOLD,
            "stop": options.STOP,
        }
        self.metrics: dict[str, Tensor] = {}

    def __call__(self, image_set: Tensor, text_set: Tensor, scale: Tensor | float) -> Tensor:
        if self.definition is None:
            scores, entropy, _ = plot_scores(image_set, text_set, scale, **self.settings)
        else:
            with torch.autocast(image_set.device.type, enabled=False):
                scores, plan = self.definition(image_set, text_set, scale, **self.settings)
            entropy = normalized(*entropies(plan)).mean()
        self.metrics = {"plan_entropy": entropy, "mode_similarity_text": mode_similarity(text_set)}
        return scores
