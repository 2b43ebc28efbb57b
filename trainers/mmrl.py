"""MMRL: tokens of a shared representation space in the upper blocks of both towers (Guo and Gu, CVPR 2025)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Encoded, Prompts
from clip.layers import KeyValue
from trainers.base import PromptTrainer, Score, template_features
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import cosine_distance, cosine_logits
from trainers.parts.options import count, precision, weight
from trainers.parts.prompts import Learner, TemplateText, random_prompt, vision_blocks
from trainers.parts.teacher import Teacher

INFERENCE = "auto: both features answer on the classes of training, the class feature alone on others"


class TextTokens(nn.Module):
    """Adapter of a text attention: words see the mapped tokens, as keys and values behind the start token."""

    def __init__(self, learner: Representation, project: nn.Linear, norm: nn.Module):
        super().__init__()
        self.project, self.others = project, (learner, norm)  # a tuple: they are no submodules

    def around(self, attention, x, mask, kv_cache=None, new_kv=None) -> Tensor:
        learner, norm = self.others
        tokens = norm(self.project(learner.tokens).to(x.dtype))[None]  # (1, K, d)
        keys, values = (side.expand(len(x), -1, -1, -1) for side in attention.keys_values(tokens))
        if kv_cache is not None:
            keys, values = torch.cat([keys, kv_cache.keys], 2), torch.cat([values, kv_cache.values], 2)
        before, words = keys.shape[2], x.shape[1]
        seen = torch.full((words, before + words), -torch.inf, device=x.device).triu_(before + 1)
        if kv_cache is None:
            seen[0, : len(learner.tokens)] = -torch.inf  # the start token stands before them
        return attention(x, seen, KeyValue(keys, values), new_kv)


class Representation(TemplateText):
    """Tokens (K, r), and for every block from `first` on (1, 2, ...) a linear map of them to each tower's width."""

    reads_inside = True

    def __init__(self, model, classnames, template: str, long_names: bool, tokens: int, width: int, first: int):
        super().__init__(model, classnames, template, long_names)
        blocks, visual, text = min(vision_blocks(model), model.transformer.layers), model.visual, model.transformer
        if first > blocks:
            raise ValueError(f"TRAINER.MMRL.LAYER is {first}, but the shallower tower has {blocks} blocks")
        self.before, self.tokens = first - 1, random_prompt(tokens, width)
        image_map, text_map = nn.Linear(width, visual.width), nn.Linear(width, text.width)  # the start of all blocks
        self.vision_maps = nn.ModuleList(copy.deepcopy(image_map) for _ in visual.blocks[self.before :])
        norms, numbers = [getattr(block, "ln_1", None) for block in text.resblocks], range(self.before, text.layers)
        self.text_maps = model.add_adapters(
            lambda _, at: TextTokens(self, copy.deepcopy(text_map), norms[at.block]), ["text"], numbers, ["attn"]
        )
        self.proj = nn.Parameter(visual.width**-0.5 * torch.randn(visual.width, visual.output_dim))

    def vision_prompts(self) -> Prompts:
        return Prompts((*[None] * self.before, *(project(self.tokens)[None] for project in self.vision_maps)), None)

    def image_features(self, encoded: Encoded, seen) -> Encoded:
        """Representation feature (B, 1, E), of the mean of the K tokens, in the place of the local ones."""
        mean = seen.tokens[:, -len(self.tokens) :].mean(dim=1)
        return Encoded(encoded.pooled, (mean @ self.proj.to(mean.dtype))[:, None])


def answers(image: Encoded, text: Encoded, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of class and of representation features."""
    return cosine_logits(image.pooled, text.pooled, scale), cosine_logits(image.tokens[:, 0], text.pooled, scale)


@TRAINER_REGISTRY.register()
class MMRL(PromptTrainer):
    """Class and representation feature of an image are compared with the classes, and both answers are mixed."""

    node, model_name = "MMRL", "MultiModalRepresentationLearner"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "N_REP_TOKENS": count(5, "K, tokens"),
            "REP_DIM": count(512, "r, width of their space"),
            "LAYER": count(6, "J, first block that gets them, counted from 1; all later ones do, too"),
            "ALPHA": Option(0.7, "α, share of the class feature in loss and answer", low=0, high=1),
            "REG_WEIGHT": weight(1.0, "λ, of the cosine distances to plain CLIP; the release has one per data set"),
            "INFERENCE": Option("auto", INFERENCE, choices=("auto", "both", "class")),
            "PREC": precision("amp"),
        }
        return method_options("MMRL", options)

    def build_learner(self, model, classnames) -> Learner:
        own, long_names = self.options, getattr(self.dm.dataset, "long_names", False)
        self.teacher = Teacher(model, template_features(model, classnames, [self.template])[0])
        return Representation(model, classnames, self.template, long_names, own.N_REP_TOKENS, own.REP_DIM, own.LAYER)

    def build_score(self, learner) -> Score:
        alpha, inference = self.options.ALPHA, self.options.INFERENCE

        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            of_class, of_tokens = answers(image, text, scale)
            alone = inference == "class" or (inference == "auto" and self.other_classes)
            return of_class if alone else alpha * of_class + (1 - alpha) * of_tokens

        return score

    def losses(self, batch) -> dict[str, Tensor]:
        own, (image, label) = self.options, self.parse_batch_train(batch)
        tokens = self.model.clip.visual.embed(image)
        output = self.parallel_model(image, tokens=tokens)
        of_class, of_tokens = answers(output.image, output.text, self.model.clip.logit_scale.exp())
        return {
            "ce": own.ALPHA * F.cross_entropy(of_class, label),
            "ce_tokens": (1 - own.ALPHA) * F.cross_entropy(of_tokens, label),
            "image": own.REG_WEIGHT * cosine_distance(output.image.pooled, self.teacher.image(tokens=tokens)),
            "text": own.REG_WEIGHT * cosine_distance(output.text.pooled, self.teacher.text),
        }
