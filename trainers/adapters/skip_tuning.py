"""Skip Tuning: the upper blocks of both towers learn, from the classes that are near a batch (Wu et al., CVPR 2025)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import CLIP
from trainers.base import PromptTrainer, template_features
from trainers.parts.engine import TRAINER_REGISTRY, Option, distributed, method_options
from trainers.parts.losses import normalise
from trainers.parts.options import count, precision
from trainers.parts.prompts import Learner, TemplateText, vision_blocks


def reserved(classes: int, always: int, decay: float) -> Tensor:
    """(C,) bool: ranks of classes that take part, rank 0 the nearest. The first do, of others a share, drawn here.

    Rank `always` + i of the R others is drawn with probability (e(x_i) - e(5)) / (e(0) - e(5)), e(x) = exp(-x / decay),
    x_i = 5 i / (R - 1): the density of an exponential distribution, stretched to 0 and 1.
    """
    density = torch.exp(-torch.linspace(0, 5, classes - always) / decay)
    if len(density) > 1:
        density = (density - density.min()) / (density.max() - density.min())
    return torch.cat([torch.ones(always, dtype=torch.bool), torch.rand(len(density)) < density])


class UpperBlocks(TemplateText):
    """Blocks from `start` on, last norms and projections of both towers, which are parts of the model.

    Args:
        ranks: (C,) see :func:`reserved`.
    """

    ranks: Tensor

    def __init__(self, model: CLIP, classnames, template: str, long_names: bool, start: int, ranks: Tensor):
        super().__init__(model, classnames, template, long_names)
        blocks = min(vision_blocks(model), model.transformer.layers)
        if start >= blocks:
            raise ValueError(f"TRAINER.SKIP.START_LAYER is {start}, but the shallower tower has {blocks} blocks")
        if not hasattr(model.visual, "ln_post"):
            raise ValueError(f"Skip Tuning needs CLIP's vision transformer, got a {type(model.visual).__name__}")
        projections = (nn.ParameterList([one]) for one in (model.text_projection, model.visual.proj))
        self.text = nn.ModuleList([*model.transformer.resblocks[start:], model.ln_final, next(projections)])
        tower = cast(Any, model.visual)
        self.vision = nn.ModuleList([*tower.blocks[start:], tower.ln_post, next(projections)])
        self.requires_grad_(True)
        self.register_buffer("ranks", ranks, persistent=False)


@TRAINER_REGISTRY.register()
class SkipTuning(PromptTrainer):
    """Cosine logits of the data set's template; cross-entropy over the classes that take part in a step."""

    node, model_name = "SKIP", "skip_tuning"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "START_LAYER": count(6, "ω, blocks of both towers that stay as they are", low=0),
            "TOP_RATIO": Option(
                0.5, "r, share of the classes that take part in any case, the nearest", above=0, high=1
            ),
            "MAX_TOP": count(50, "most of those"),
            "LAMBDA": Option(0.3, "λ, scale of the density by which further classes take part", above=0),
            "PREC": precision("fp32"),
        }
        return method_options("SKIP", options)

    def build_learner(self, model, classnames) -> Learner:
        own, long_names = self.options, getattr(self.dm.dataset, "long_names", False)
        self.prototypes = normalise(template_features(model, classnames, [self.template])[0])  # (C, E) of plain CLIP
        always = min(math.ceil(own.TOP_RATIO * len(classnames)), own.MAX_TOP)
        ranks = reserved(len(classnames), always, own.LAMBDA)
        return UpperBlocks(model, classnames, self.template, long_names, own.START_LAYER, ranks)

    @torch.no_grad()
    def taking_part(self, feature: Tensor, label: Tensor) -> Tensor:
        """(C,) bool, of the batch's image features (B, E), those of all processes: by the nearest image of a class."""
        feature, label = distributed.gather(normalise(feature.detach())), distributed.gather(label)
        nearest = (feature @ self.prototypes.T).amax(dim=0).index_fill(0, label, torch.inf)
        ranks: Tensor = self.model.get_buffer("learner.ranks")
        return torch.zeros_like(ranks).scatter(0, nearest.argsort(descending=True), ranks).index_fill(0, label, True)

    def losses(self, batch) -> dict[str, Tensor]:
        image, label = self.parse_batch_train(batch)
        output = self.parallel_model(image)
        skipped = ~self.taking_part(output.image.pooled, label)
        return {"ce": F.cross_entropy(output.logits.masked_fill(skipped, -torch.inf), label)}
