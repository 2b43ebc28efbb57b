"""PromptKD: the image tower learns what a teacher says of images without labels (Li et al., CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip import CLIP, Encoded, Prompts
from trainers.base import PromptedCLIP, PromptTrainer, Score, cosine_score
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import cosine_logits
from trainers.parts.modes import saved_prompts
from trainers.parts.options import count, precision, weight
from trainers.parts.prompts import FixedText, Learner, TemplateText, feature_map, visual_prompts


class Student(FixedText):
    """Visual prompts, and a map of image features (B, E) to the width T of the teacher's.

    Args:
        features: (C, T) class features of the teacher.
        normalised: the map's hidden layer goes through batch normalisation.
    """

    def __init__(self, model: CLIP, features: Tensor, n_ctx: int, depth: int, normalised: bool):
        super().__init__(features)
        self.vision = visual_prompts(model, 1, n_ctx, depth)
        self.project = feature_map(model.visual.output_dim, features.shape[1], normalised)

    def vision_prompts(self) -> Prompts:
        return Prompts(tuple(self.vision), None)


@TRAINER_REGISTRY.register()
class PromptKD(PromptTrainer):
    """Image features of prompts and a map are compared with the teacher's classes; labels are not used."""

    node, model_name = "PROMPTKD", "VLPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "N_CTX": count(4, "m, visual prompt vectors per layer"),
            "PROMPT_DEPTH": count(9, "J, layers with visual prompts"),
            "TEACHER": Option("", "name or file of the teacher's CLIP; empty = that of the student"),
            "TEACHER_PROMPTS": Option("", "checkpoint of PromptSRC or IVLP on it; empty = the template"),
            "TEMPERATURE": Option(1.0, "T, of both softmaxes", above=0),
            "KD_WEIGHT": weight(1000.0, "factor of the loss"),
            "BATCH_NORM": Option(True, "in the map, as released; False: none"),
            "PREC": precision(),
        }
        return method_options("PROMPTKD", options)

    def build_learner(self, model, classnames) -> Learner:
        own, device = self.options, model.logit_scale.device
        teacher = clip.load(own.TEACHER, device)[0].requires_grad_(False) if own.TEACHER else model
        if teacher.visual.input_resolution != model.visual.input_resolution:
            sides = teacher.visual.input_resolution, model.visual.input_resolution
            raise ValueError(f"TRAINER.PROMPTKD.TEACHER takes images of {sides[0]} pixels, the student of {sides[1]}")
        if own.TEACHER_PROMPTS:
            learner: Learner = saved_prompts(teacher, classnames, own.TEACHER_PROMPTS)
        else:
            learner = TemplateText(teacher, classnames, self.template, getattr(self.dm.dataset, "long_names", False))
        self.teacher = PromptedCLIP(teacher, learner.requires_grad_(False).to(device), cosine_score).eval()
        with torch.no_grad():
            self.teacher_text = self.teacher.encode_text()
        if own.TEACHER:
            clip.convert_weights(teacher, self.precision.dtype)
        return Student(model, self.teacher_text.pooled.float(), own.N_CTX, own.PROMPT_DEPTH, own.BATCH_NORM)

    def build_score(self, learner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            return cosine_logits(learner.project(image.pooled.float()), text.pooled, scale)

        return score

    def losses(self, batch) -> dict[str, Tensor]:
        """Mean over images and classes of the terms of the KL divergence, times T² and the weight."""
        image, own = self.parse_batch_train(batch)[0], self.options
        with torch.no_grad():
            known = self.teacher(image, self.teacher_text).logits
        found = self.parallel_model(image).logits
        sides = (found / own.TEMPERATURE).log_softmax(dim=1), (known / own.TEMPERATURE).softmax(dim=1)
        return {"kd": own.KD_WEIGHT * own.TEMPERATURE**2 / found.numel() * F.kl_div(*sides, reduction="sum")}
