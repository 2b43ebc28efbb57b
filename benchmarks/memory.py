"""Memory that a training step needs, counted and not measured: the smallest budget that computes nothing twice.

The budget is TRAIN.MEMORY_BUDGET. Weights, gradients and momenta, what the towers keep of a step and the features are
counted on the meta device, with the reserve that the budget has, as on a GPU; ImageNet's class names. Nothing is
computed and no memory is taken.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import nn

import clip.layers
from clip import CLIP
from clip.text_plan import PlanInputs, make_plan
from trainers.base import PromptedCLIP, cosine_score
from trainers.parts.memory import MemoryPlan
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import Learner, TextContext

from .align_step import NAMES, VIT_B16
from .report import show

VIT_L14 = {**VIT_B16, "embed_dim": 768, "vision_layers": 24, "vision_width": 1024, "vision_patch_size": 14}
VIT_L14 |= {"transformer_width": 768, "transformer_heads": 12}
BACKBONES = {"ViT-B/16": VIT_B16, "ViT-L/14": VIT_L14}
INIT = "a photo of a"
LEARNERS = {
    "CoOp": lambda model, names: TextContext(model, names, 16),
    "MaPLe": lambda model, names: MultiModeLearner(model, names, 2, 9, init=INIT),
    "PromptSRC": lambda model, names: MultiModeLearner(model, names, 4, 9, init=INIT, coupled=False),
    "ALIGN": lambda model, names: MultiModeLearner(model, names, 2, 9, 4, 4, INIT),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", choices=LEARNERS, default=list(LEARNERS), metavar="NAME")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), metavar="NAME")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32, 128], help="images (default 4 32 128)")
    parser.add_argument("--classes", type=int, default=1000, help="at most 1000 (default %(default)s)")
    parser.add_argument("--half", action="store_true", help="weights and activations of 2 bytes (PREC bf16 or fp16)")


class Fused(torch.autograd.Function):
    """Keeps what fused attention keeps; on the meta device torch would count the scores too."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def count_fused_attention() -> None:
    """From now on this process computes no attention."""
    clip.layers.attend = Fused.apply


def prompted(method: str, backbone: str, names: list[str], half: bool) -> PromptedCLIP:
    """A model without memory; what learns stays fp32."""
    with torch.device("meta"):
        model = CLIP(**BACKBONES[backbone]).requires_grad_(False)
    vocabulary, width = model.token_embedding.weight.shape
    table, model.token_embedding = model.token_embedding, nn.Embedding(vocabulary, width)  # learners read words of it
    learner: Learner = LEARNERS[method](model, names)
    model.token_embedding = table
    if half:
        model.bfloat16()
    for module in learner.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(value.to("meta")))
    return PromptedCLIP(model, learner, cosine_score)


def needed(model: PromptedCLIP, batch: int, local: bool) -> float:
    """GiB; `local`: the score compares tokens."""
    towers, learner = model.clip, model.learner
    ids, prompts = learner.text_prompts()
    assert prompts is not None
    assert prompts.slots is not None  # every one of LEARNERS prompts the text tower
    device = towers.token_embedding.weight.device
    kinds = next((len(layer) for layer in prompts.layers if layer is not None and layer.dim() == 3), 0)
    facts = PlanInputs(device, prompts.slots.shape[-1], None, kinds, local, False, False)
    layout = make_plan(towers._cut, ids, prompts.slots, prompts.prompt_index, None, facts).layout
    tokens = towers.visual.embed(torch.empty(batch, 3, *[towers.visual.input_resolution] * 2, device=device))
    vision = learner.vision_prompts()
    known: dict[tuple, float] = {}

    def fits(budget: float) -> bool:
        plan = MemoryPlan(budget)
        plan.known, plan.warned = known, True
        parts = [] if vision is None else [plan.image(model, towers, tokens, vision, batch * learner.vision_modes)]
        return all(part is None for part in [*parts, plan.text(model, towers, local)(layout)])

    low, high = 0.0, 4096.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def run(arguments: argparse.Namespace) -> None:
    count_fused_attention()
    names = json.loads(NAMES.read_text())["names"]["ImageNet"][: arguments.classes]
    for backbone in arguments.backbones:
        for method in arguments.methods:
            model = prompted(method, backbone, names, arguments.half)
            figures = {
                f"batch_{batch}_gib": round(needed(model, batch, method == "ALIGN"), 1) for batch in arguments.batch
            }
            settings = {"method": method, "backbone": backbone, "classes": arguments.classes, "half": arguments.half}
            show("memory", figures, settings)
