"""PromptSRC: independent deep prompts of both towers, regulated by the frozen CLIP (Khattak et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import CLIP
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import cosine_logits, normalise
from trainers.parts.modes import independent_prompts
from trainers.parts.options import VISION_SCALE, context_init, count, precision, weight
from trainers.parts.prompts import Learner
from trainers.parts.teacher import Teacher
from trainers.parts.templates import IMAGENET_TEMPLATES

from .base import PromptTrainer, template_features

# The released code's 60: the first 60 of CLIP's 80 sentences.
TEACHER_TEMPLATES = IMAGENET_TEMPLATES[:60]
GPA_SCOPES = ("prompts", "all")


def text_teacher(model: CLIP, classnames: Sequence[str], normalised: bool) -> Tensor:
    """Mean over the 60 templates of each class's text features, (C, E), itself not normalised (Section 3.2.3).

    `normalised`: every feature has length 1 before the mean; the released code averages them as they are.
    """
    features = template_features(model, classnames, TEACHER_TEMPLATES)
    return (normalise(features) if normalised else features.float()).mean(dim=0)


def gaussian_weights(epochs: int, mean: float, std: float) -> Tensor:
    """(epochs,) weights in float64, proportional to exp(-(a - mean)^2 / (2 std^2)) at epoch a = 1, 2, ..., sum 1."""
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    return torch.softmax(-((epoch - mean) ** 2) / (2 * std**2), dim=0)


@torch.no_grad()
def average_of_copies(module: nn.Module, weights: Tensor) -> None:
    """Replace every parameter by the weighted sum of copies of itself, each product and sum in the parameter's type.

    The identity but for rounding; what averaging a whole fp16 model over the epochs does to its frozen weights.
    """
    for parameter in module.parameters():
        total = torch.zeros_like(parameter)
        for factor in weights.tolist():
            total += parameter * factor
        parameter.copy_(total)


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """IVLP's prompts with three regularisers towards frozen CLIP, and a Gaussian weighted average over the epochs.

    After the last epoch the learner holds the average of its states at the ends of all epochs, and that is what is
    saved and tested.
    """

    node = "PROMPTSRC"
    cuts_phrases = True
    model_name = "VLPromptLearner"
    averaged = False  # whether the frozen weights went through the average (GPA_SCOPE all)

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "PROMPTSRC",
            {
                "N_CTX_TEXT": count(4, "n, context vectors per layer"),
                "N_CTX_VISION": count(4, "m, visual prompt vectors per layer"),
                "CTX_INIT": context_init("a photo of a", "words that start the context of the input layer"),
                "KEEP_REST": Option(True, "words of CTX_INIT beyond n stay, frozen, before the name"),
                "PROMPT_DEPTH_TEXT": count(9, "J_t, layers with their own context"),
                "PROMPT_DEPTH_VISION": count(9, "J_v, layers with their own visual prompts"),
                "TEXT_LOSS_WEIGHT": weight(25.0, "λ_t, of the L1 distance of text features to the teacher's"),
                "IMAGE_LOSS_WEIGHT": weight(10.0, "λ_i, of the L1 distance of image features to the teacher's"),
                "NORMALIZE_TEMPLATES": Option(
                    True, "the text teacher's 60 features have length 1 before their mean; released: False"
                ),
                "KL_PER_CLASS": Option(True, "KL divided by B * C, which the weights belong to; False: by B"),
                "GPA_MEAN": Option(15.0, "μ, epoch, from 1, with the largest weight in the average"),
                "GPA_STD": Option(1.0, "σ, in epochs", above=0),
                "GPA_SCOPE": Option(
                    "prompts",
                    "all: the frozen weights are averaged too, in the type they are stored in, as released",
                    choices=GPA_SCOPES,
                ),
                "VISION_SCALE": VISION_SCALE,
                "PREC": precision(),
            },
        )

    @classmethod
    def config_problems(cls, cfg) -> list[str]:
        found = super().config_problems(cfg)
        if cfg.TRAINER.PROMPTSRC.GPA_SCOPE == "all" and cfg.TEST.FINAL_MODEL == "best_val":
            found.append(
                "TRAINER.PROMPTSRC.GPA_SCOPE is 'all', but TEST.FINAL_MODEL best_val may deploy an epoch before the "
                "average: use GPA_SCOPE prompts or FINAL_MODEL last_step"
            )
        return found

    def build_learner(self, model, classnames) -> Learner:
        learner = independent_prompts(model, classnames, self.options)
        self.teacher = Teacher(model, text_teacher(model, classnames, self.options.NORMALIZE_TEMPLATES))
        self.gpa: dict[str, Tensor] = {}  # weighted sum of the learner's states so far
        return learner

    def losses(self, batch) -> dict[str, Tensor]:
        """Cross-entropy and the weighted regularisers (Section 3.2.1); L1 means over all entries of both matrices."""
        options, clip = self.options, self.model.clip
        image, label = self.parse_batch_train(batch)
        with torch.no_grad():
            tokens = clip.visual.embed(image)  # the frozen part that both passes share
        image_teacher = normalise(self.teacher.image(tokens=tokens))  # (B, E)
        text_teacher = normalise(self.teacher.text)  # (C, E)
        output = self.parallel_model(image, tokens=tokens)
        known = cosine_logits(image_teacher, text_teacher, clip.logit_scale.exp())  # (B, C)
        kl = F.kl_div(
            output.logits.log_softmax(dim=1), known.log_softmax(dim=1), reduction="batchmean", log_target=True
        )
        return {
            "ce": F.cross_entropy(output.logits, label),
            "text_l1": options.TEXT_LOSS_WEIGHT * F.l1_loss(normalise(output.text.pooled), text_teacher),
            "image_l1": options.IMAGE_LOSS_WEIGHT * F.l1_loss(normalise(output.image.pooled), image_teacher),
            "kl": kl / known.shape[1] if options.KL_PER_CLASS else kl,
        }

    # the Gaussian weighted average (Section 3.2.2)

    def epoch_weights(self) -> Tensor:
        return gaussian_weights(self.max_epoch, self.options.GPA_MEAN, self.options.GPA_STD)

    def after_epoch(self) -> None:
        weight = float(self.epoch_weights()[self.epoch])
        for name, value in self.model.learner.state_dict().items():
            self.gpa[name] = self.gpa.get(name, 0) + weight * value
        if self.epoch + 1 == self.max_epoch:
            self.model.learner.load_state_dict(self.gpa)
            self.average_frozen()
        super().after_epoch()

    def average_frozen(self) -> None:
        """Apply the released average to the frozen weights, once."""
        if self.options.GPA_SCOPE == "all" and not self.averaged:
            average_of_copies(self.model.clip, self.epoch_weights())
            self.averaged = True

    def extra_state(self) -> dict[str, Any]:
        return {"gpa": self.gpa, "epochs": self.epoch + 1}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.gpa = {name: value.to(self.device) for name, value in state["gpa"].items()}
        if state["epochs"] == self.max_epoch:
            self.average_frozen()

    def load_checkpoints(self, found: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> None:
        super().load_checkpoints(found)
        if found[self.model_name][1]["epoch"] == self.max_epoch:
            self.average_frozen()
