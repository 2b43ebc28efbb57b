"""CLIP-Adapter: a small residual network on the image feature (Gao et al., IJCV 2024, Section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import Encoded
from trainers.base import PromptTrainer, Score, ensemble_features
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import cosine_logits
from trainers.parts.options import count, precision
from trainers.parts.prompts import FixedText, Learner


class Adapter(FixedText):
    """a(x) = relu(W2 relu(W1 x)) on image features, W1 (E / r, E) and W2 (E, E / r) without biases.

    Args:
        features: (C, E) classifier of the templates.
        reduction: r.
    """

    def __init__(self, features: Tensor, reduction: int):
        super().__init__(features)
        width = features.shape[1]
        if not 1 <= reduction <= width:
            raise ValueError(f"REDUCTION is {reduction}, expected 1 to {width}, the width of the features")
        self.fc = nn.Sequential(
            nn.Linear(width, width // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(width // reduction, width, bias=False),
            nn.ReLU(),
        )

    def adapt(self, image: Tensor) -> Tensor:
        """(B, E), not normalised -> (B, E)."""
        return self.fc(image)


@TRAINER_REGISTRY.register()
class CLIPAdapter(PromptTrainer):
    """Cosine logits of r * a(x) + (1 - r) * x against the data set's template, x the image feature of plain CLIP.

    The adapter belongs to no class list. Image features are augmented anew in every epoch, so they are not kept.
    """

    node = "CLIP_ADAPTER"
    model_name = "clip_adapter"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "CLIP_ADAPTER",
            {
                "RATIO": Option(0.2, "r, share of the adapted feature; 0 is zero-shot CLIP", low=0, high=1),
                "REDUCTION": count(4, "width of the features over that of the hidden layer"),
                "PREC": precision("fp32"),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        return Adapter(ensemble_features(model, classnames, [self.template]), self.options.REDUCTION)

    def build_score(self, learner) -> Score:
        ratio = self.options.RATIO

        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            feature = image.pooled.float()
            with torch.autocast(feature.device.type, enabled=False):
                mixed = ratio * learner.adapt(feature) + (1 - ratio) * feature
                return cosine_logits(mixed, text.pooled, scale)

        return score
