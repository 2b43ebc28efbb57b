"""DePT: a linear head on scaled channels beside the answers of another method (Zhang et al., CVPR 2024).

`CoOpDePT`, `KgCoOpDePT` and `MaPLeDePT` are the registered methods with a `Decoupling` around them. What only helps the
classes of training goes into the head, and the prompts stay free of it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Encoded
from trainers.base import Score
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.prompts import Learner
from trainers.parts.wrapper import Wrapper, wrap


class Head(nn.Module):
    """Channels of image and text features scaled and shifted, each side its own way, and a linear classifier of both.

    Args:
        classes: C.
        width: E.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.image_scale, self.text_scale = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.image_shift, self.text_shift = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.linear = nn.Linear(width, classes)

    def forward(self, side: str, feature: Tensor) -> Tensor:
        """Logits (rows, C) of features (rows, E), not normalised, of one side: image or text."""
        with torch.autocast(feature.device.type, enabled=False):
            scale, shift = getattr(self, f"{side}_scale"), getattr(self, f"{side}_shift")
            return self.linear(scale * feature.float() + shift)


class Decoupling(Wrapper):
    """A head for the classes of training beside another method. Other classes get the method's answer alone."""

    node = "DEPT"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "WEIGHT": Option(0.7, "λ, share of the head in the loss and the answer", low=0, high=1),
            "FUSION": Option(True, "False: on the classes of training the head answers alone"),
        }
        return method_options("DEPT", options)

    def learner(self, inner, model, classnames) -> Learner:
        if inner.text_modes * inner.vision_modes > 1 or inner.conditional:
            raise ValueError(f"DePT compares one feature of each image and class, {type(inner).__name__} has several")
        inner.dept = Head(len(classnames), model.text_projection.shape[1])
        return inner

    @property
    def head(self) -> Head:
        """The head once it is built."""
        return cast(Head, self.trainer.model.learner.dept)

    def score(self, inner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            logits = inner(image, text, scale)
            if self.head.training or self.trainer.other_classes:
                return logits
            weight = self.options.WEIGHT if self.options.FUSION else 1.0
            return (1 - weight) * logits + weight * self.head("image", image.pooled)

        return score

    def losses(self, terms, output, label) -> dict[str, Tensor]:
        """The head learns from every image and from the text feature of its class, mean over both (Eq. 3)."""
        both = torch.cat([self.head("text", output.text.pooled[label]), self.head("image", output.image.pooled)])
        return {**terms, "head": self.options.WEIGHT * F.cross_entropy(both, label.repeat(2))}

    def weigh(self, terms) -> dict[str, Tensor]:
        return {**terms, "ce": (1 - self.options.WEIGHT) * terms["ce"]}

    def weights(self, path, checkpoint, own) -> dict[str, Tensor]:
        """Everything; on other classes without the classifier, which then does not answer."""
        weights, stored = dict(own(path, checkpoint)), checkpoint.get("classnames")
        if stored and list(stored) != self.trainer.classnames():
            weights |= {f"dept.linear.{name}": value for name, value in self.head.linear.state_dict().items()}
        return weights


CoOpDePT = wrap(TRAINER_REGISTRY.get("CoOp"), Decoupling, "CoOpDePT")
KgCoOpDePT = wrap(TRAINER_REGISTRY.get("KgCoOp"), Decoupling, "KgCoOpDePT")
MaPLeDePT = wrap(TRAINER_REGISTRY.get("MaPLe"), Decoupling, "MaPLeDePT")
