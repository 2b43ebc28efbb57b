"""Options that PLOT and PLOT++ have for transport, and the score by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers.parts.modes import mode_similarity
from transport.set_distances import set_distances
from transport.sinkhorn import entropies, normalized


class SetTransport:
    """PLOT's transport with a method's options: (image_set, text_set, scale) -> scores (B, C).

    `metrics` holds the entropy of the last call's plans, 1 = uniform, and the mean cosine between the sentences of a
    class, so that a log shows what transport and modes add.

    Args:
        options: the method's config node.
        definition: computes scores and plans in the place of the fast form, which keeps no plans.
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
        if self.definition is None or torch.compiler.is_exporting():
            together = self.settings["stop"] == "scaling_change"
            found = set_distances(image_set.unsqueeze(1), text_set.unsqueeze(1), **self.settings, together=together)
            scores, entropy = scale * (1 - found.value.flatten(1)), found.entropy  # (B, C)
        else:
            scores, plan = self.definition(image_set, text_set, scale, **self.settings)
            entropy = normalized(*entropies(plan)).mean()
        self.metrics = {"plan_entropy": entropy, "mode_similarity_text": mode_similarity(text_set)}
        return scores
