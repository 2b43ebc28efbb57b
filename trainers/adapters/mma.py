"""MMA: adapters beside the last blocks of both towers with a layer in common (Yang et al., CVPR 2024, Section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.adapters import TOWERS, tower_blocks
from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import count, precision
from trainers.parts.prompts import Learner, TemplateText


class ScaledGradient(torch.autograd.Function):
    """The same values; their gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def layer(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer, drawn as He et al. (2015) by its outputs, with a bias of zero."""
    made = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(made.bias)
    return made


class Beside(nn.Module):
    """out + scale * up(relu(shared(relu(down(ln_1(x)))))) of a block with input x and output out.

    Args:
        block: its first layer norm, ln_1, is that of the adapter, too.
        shared: (h, h), of this block in both towers; it belongs to the learner.
        scale: s.
        released: the weights get the gradient they would have with s = 1.
    """

    def __init__(self, block: Any, shared: nn.Linear, scale: float, released: bool):
        super().__init__()
        norm = getattr(block, "ln_1", None) or block.norm1
        width = norm.normalized_shape[0]
        self.down, self.up = layer(width, shared.in_features), layer(shared.in_features, width)
        self.others = (norm, shared)  # a tuple, so that they stay the parts of one module
        self.scale, self.released = scale, released

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        norm, shared = self.others
        if self.released:
            x = ScaledGradient.apply(x, self.scale)
        change = self.scale * self.up(shared(self.down(norm(x)).relu()).relu())
        return out + (ScaledGradient.apply(change, 1 / self.scale) if self.released else change)


@TRAINER_REGISTRY.register()
class MMA(PromptTrainer):
    """Cross-entropy on the cosine logits of the template; the adapters of both towers and what they share learn."""

    node, model_name = "MMA", "mma"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "MMA",
            {
                "BLOCKS": count(8, "last blocks of each tower that get an adapter"),
                "WIDTH": count(32, "h, of the hidden layers"),
                "SCALE": Option(0.001, "s, factor on what an adapter adds", above=0),
                "GRADIENT": Option(
                    "released",
                    "of the weights: released, as with s = 1; plain, that of the loss",
                    ("released", "plain"),
                ),
                "PREC": precision("amp"),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        own = self.options
        learner = TemplateText(model, classnames, self.template, getattr(self.dm.dataset, "long_names", False))
        shared = [layer(own.WIDTH, own.WIDTH) for _ in range(own.BLOCKS)]
        sizes = {tower: len(tower_blocks(model, tower)) for tower in TOWERS}

        def beside(block: nn.Module, place) -> nn.Module:
            one = shared[place.block - sizes[place.tower] + own.BLOCKS]
            return Beside(block, one, own.SCALE, own.GRADIENT == "released")

        learner.adapters = model.add_adapters(beside, blocks=range(-own.BLOCKS, 0), parts=["block"])
        learner.shared = nn.ModuleList(shared)
        return learner
