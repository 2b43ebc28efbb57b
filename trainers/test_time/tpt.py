"""TPT: a step on the prompt for every test image (Shu et al., NeurIPS 2022, Section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import context, context_init, count, precision, share
from trainers.parts.prompts import Learner, TextContext
from trainers.parts.views import confident, entropy_of_mean


@TRAINER_REGISTRY.register()
class TPT(PromptTrainer):
    """The context makes what the sure views of an image say together surer, predicts the image, and goes back.

    TEST.VIEWS random training transforms of the image are looked at beside it. Nothing is learned before;
    TRAIN.INIT_FROM starts from the context that a run of CoOp has learned.
    """

    node, by_steps, adapts = "TPT", False, True

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "TPT",
            {
                "N_CTX": context(4),
                "CTX_INIT": context_init("a photo of a"),
                "SELECT": share(0.1, "of the views, those with the lowest entropy; at least one"),
                "STEPS": count(1, "of AdamW on one image"),
                "LR": Option(0.005, "its rate", above=0),
                "WEIGHT_DECAY": Option(0.01, "its weight decay", low=0),
                "PREC": precision("fp32"),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        return TextContext(model, classnames, self.options.N_CTX, self.options.CTX_INIT)

    def before_inference(self) -> None:
        super().before_inference()
        with torch.enable_grad(), self.test_precision.autocast():
            self.model.encode_text()  # how sentences are laid out with gradients is read once, not by the first image

    def adapt(self, views: Tensor) -> Tensor:
        own, learner, scale = self.options, self.model.learner, self.model.clip.logit_scale.detach().exp()
        assert isinstance(learner, TextContext)
        start = learner.ctx.detach().clone()
        with torch.no_grad():
            image = self.model.encode_image(views)
        optim = torch.optim.AdamW([learner.ctx], own.LR, weight_decay=own.WEIGHT_DECAY)
        chosen: Tensor | None = None
        try:
            for _ in range(own.STEPS):
                logits = self.model.score(image, self.model.encode_text(), scale)
                if chosen is None:  # by the first step, as released
                    chosen = confident(logits.detach(), own.SELECT)
                optim.zero_grad()
                entropy_of_mean(logits[chosen]).backward()
                optim.step()
            with torch.no_grad():
                first = type(image)(*(value[:1] for value in image))
                return self.model.score(first, self.model.encode_text(), scale)[0]
        finally:
            learner.ctx.grad = None
            with torch.no_grad():
                learner.ctx.copy_(start)
