"""ProGrad: only steps that do not contradict zero-shot CLIP (Zhu et al., ICCV 2023)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP
from trainers.parts.engine import TRAINER_REGISTRY, GradientProjection, Option, method_options
from trainers.parts.losses import distillation_loss
from trainers.parts.options import CLASS_TOKEN_POSITION, count, precision, weight
from trainers.parts.prompts import Learner, TextContext, init_context, word_tokens
from trainers.parts.teacher import Teacher

from .base import Output, PromptTrainer, template_features

logger = logging.getLogger(__name__)

# Sentences of the teacher, whose words can also start the context, where they are not those of zero-shot CLIP.
TEACHER_TEMPLATES = {
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    "Food101": "a type of food, a photo of {}.",
}


def start_from_phrase(learner: TextContext, model: CLIP, phrase: str) -> None:
    """The last context vectors become the token embeddings of the phrase; the ones before stay random.

    Of a longer phrase the last tokens are taken: an evaluation on another data set, whose phrase may be longer,
    replaces them by what was learned.
    """
    words = init_context(model, phrase, len(word_tokens(model, phrase)))
    n_ctx = learner.ctx.shape[-2]
    if len(words) > n_ctx:
        logger.warning(
            "The context starts as the last %d of the %d tokens of %r (TRAINER.PROGRAD.N_CTX)",
            n_ctx,
            len(words),
            phrase,
        )
        words = words[len(words) - n_ctx :]
    with torch.no_grad():
        learner.ctx[..., n_ctx - len(words) :, :] = words


def released_start(model: CLIP, classnames: list[str], n_ctx: int, phrase: str) -> TextContext:
    """The start of the released code: as many tokens of the phrase as it has words, after vectors that are zero.

    A phrase with a comma has more tokens than words; those left over stay, frozen, between the context and the name.
    """
    tokens = word_tokens(model, phrase)
    kept = len(phrase.split())
    if kept > n_ctx:
        raise ValueError(f"{phrase!r} has {kept} words, but TRAINER.PROGRAD.N_CTX is {n_ctx}: raise N_CTX")
    learner = TextContext(model, classnames, n_ctx + len(tokens) - kept)
    left = torch.tensor(tokens[kept:], device=learner.ids.device).expand(len(classnames), -1)
    learner.ids.scatter_(1, learner.slots[:, n_ctx:], left)
    learner.slots = learner.slots[:, :n_ctx]
    ctx = learner.ctx.new_zeros(n_ctx, learner.ctx.shape[-1])
    ctx[n_ctx - kept :] = init_context(model, phrase, kept)
    learner.ctx = nn.Parameter(ctx)
    return learner


def project(gradient: Tensor, guide: Tensor, weight: float) -> Tensor:
    """g - weight * (g . u) u with u = guide / |guide| if g . u < 0, else g, of any equal shapes.

    A guide of zero has no direction and leaves g as it is.
    """
    direction = guide / guide.norm()
    along = (gradient * direction).sum()
    return torch.where(along < 0, gradient - weight * along * direction, gradient)


@TRAINER_REGISTRY.register()
class ProGrad(PromptTrainer):
    """CoOp's context and loss; the gradient loses what points against the gradient of a distillation loss.

    The distillation loss compares with the logits of hand-made sentences; it is logged as `kl` and never minimised.
    """

    node = "PROGRAD"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "PROGRAD",
            {
                "N_CTX": count(16, "n, number of context vectors"),
                "CSC": Option(False, "class-specific context"),
                "CTX_INIT": Option(
                    False, "the last vectors start as the tokens of the teacher's sentence before the name"
                ),
                "RELEASED_INIT": Option(
                    False, "with CTX_INIT: words, not tokens, are counted; the other vectors are zero"
                ),
                "CLASS_TOKEN_POSITION": CLASS_TOKEN_POSITION,
                "T": Option(1.0, "temperature of the distillation loss", above=0),
                "LAMBDA": weight(
                    1.0,
                    "λ, share of the contradicting part that is removed; the authors use 0.8 with 8 and 16 shots of "
                    "Flowers, DTD and EuroSAT",
                ),
                "PREC": precision(),
            },
        )

    @classmethod
    def config_problems(cls, cfg) -> list[str]:
        found, options = super().config_problems(cfg), cfg.TRAINER.PROGRAD
        plain = options.CTX_INIT and not options.CSC and options.CLASS_TOKEN_POSITION == "end"
        if options.RELEASED_INIT and not plain:
            found.append(
                "TRAINER.PROGRAD.RELEASED_INIT is True, expected False unless CTX_INIT True, CSC False and position end"
            )
        return found

    def build_learner(self, model, classnames) -> Learner:
        options, template = self.options, self.teacher_template(TEACHER_TEMPLATES)
        phrase, _, end = template.partition("{}")
        if options.CTX_INIT and (end != "." or not phrase.strip()):
            raise ValueError(f"TRAINER.PROGRAD.CTX_INIT needs a template that ends with the name, got {template!r}")
        if options.RELEASED_INIT:
            learner = released_start(model, classnames, options.N_CTX, phrase.strip())
        else:
            position = options.CLASS_TOKEN_POSITION
            learner = TextContext(model, classnames, options.N_CTX, class_specific=options.CSC, position=position)
            if options.CTX_INIT:
                start_from_phrase(learner, model, phrase.strip())
        features = template_features(model, classnames, [template])
        self.teacher = Teacher(model, features[0])
        return learner

    def extra_losses(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        self.kl = distillation_loss(output.logits, self.teacher.logits(output.image.pooled), self.options.T)
        return {}

    def extra_metrics(self) -> dict[str, Tensor]:
        return {"kl": self.kl.detach()}

    def gradient_projection(self) -> GradientProjection:
        return GradientProjection(self.kl, lambda gradient, guide: project(gradient, guide, self.options.LAMBDA))
