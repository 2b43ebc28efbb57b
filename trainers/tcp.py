"""TCP: class-aware prompts made from the features of hand-made sentences (Yao et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, Prompts
from clip.layers import QuickGELU
from trainers.parts.engine import TRAINER_REGISTRY, method_options
from trainers.parts.losses import cosine_distance, normalise
from trainers.parts.options import context, context_init, count, precision, weight
from trainers.parts.prompts import (
    Learner,
    init_context,
    meta_net,
    random_prompt,
    readable,
    word_tokens,
)

from .base import Output, PromptTrainer, template_features

REDUCTION = 4  # the meta-net's hidden layer is this many times narrower than the text feature

# Sentences of the teacher where they are not those of zero-shot CLIP.
TEACHER_TEMPLATES = {
    "FGVCAircraft": "a photo of an aircraft {}.",
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "Food101": "a photo of a {}, a type of food.",
}

# What follows the context vectors where it is not "{}.".
STUDENT_SENTENCES = {
    "OxfordPets": "{}, a type of pet.",
    "OxfordFlowers": "{}, a type of flower.",
    "FGVCAircraft": "{}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "StanfordCars": "{}, a type of car",
    "Food101": "{}, a type of food.",
    "UCF101": "person doing {}.",
}


class ClassAwareContext(Learner):
    """Context vectors at the input, and at a deeper block vectors of each class in their place.

    The second are G_c = net(t_c), (n, d) per class, of the normalised frozen text feature t_c.

    Args:
        model: the frozen CLIP.
        classnames: C class names.
        sentence: what follows the context, with {} for the name.
        teacher: (C, E) features of the hand-made sentences.
        n_ctx: context length n; replaced by the number of tokens of `init` when that is given.
        init: phrase that starts the context; empty for N(0, 0.02^2).
        block: block of the text tower whose input gets the class-aware vectors, counted from 0.

    Raises:
        ValueError: the text tower has no such block, or it is block 0, whose input has the context.
    """

    ids: Tensor
    slots: Tensor
    teacher: Tensor

    def __init__(
        self,
        model: CLIP,
        classnames: Sequence[str],
        sentence: str,
        teacher: Tensor,
        n_ctx: int,
        init: str = "",
        block: int = 8,
    ):
        super().__init__()
        blocks = model.transformer.layers
        if not 1 <= block < blocks:
            raise ValueError(f"TRAINER.TCP.BLOCK is {block}, expected 1 to {blocks - 1}: the text tower has {blocks}")
        if init:
            n_ctx = len(word_tokens(model, readable(init)))
        self.block = block
        width, features = model.token_embedding.weight.shape[1], teacher.shape[1]
        self.ctx = nn.Parameter(init_context(model, init, n_ctx)) if init else random_prompt(n_ctx, width)
        self.meta_net = meta_net(features, features // REDUCTION, n_ctx * width, QuickGELU())
        texts = [sentence.format(readable(name)) for name in classnames]
        self.register_buffer("ids", model.words.tokenize(texts, room=n_ctx), persistent=False)
        self.register_buffer("slots", model.words.first + torch.arange(n_ctx), persistent=False)
        self.register_buffer("teacher", normalise(teacher), persistent=False)

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        class_aware = self.meta_net(self.teacher).unflatten(-1, self.ctx.shape)  # (C, n, d)
        return self.ids, Prompts((self.ctx, *[None] * (self.block - 1), class_aware), self.slots)


@TRAINER_REGISTRY.register()
class TCP(PromptTrainer):
    """Class-aware prompts, trained by cross-entropy and W times the mean cosine distance to frozen text features."""

    node = "TCP"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "TCP",
            {
                "N_CTX": context(4),
                "CTX_INIT": context_init(),
                "BLOCK": count(8, "block of the text tower, from 0, whose input gets the class-aware vectors"),
                "W": weight(8.0, "weight of the distance to the hand-made sentences"),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        sentence = STUDENT_SENTENCES.get(self.cfg.DATASET.NAME, "{}.")
        teacher = template_features(model, classnames, [self.teacher_template(TEACHER_TEMPLATES)])[0]
        return ClassAwareContext(model, classnames, sentence, teacher, options.N_CTX, options.CTX_INIT, options.BLOCK)

    def extra_losses(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        distance = cosine_distance(output.text.pooled, cast(ClassAwareContext, self.model.learner).teacher)
        return {"kg": self.options.W * distance}
