"""2SFS: the layer norms of both towers learn first, then a linear classifier (Farina et al., CVPR 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from yacs.config import CfgNode

from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, Option, build_optimizer, method_options
from trainers.parts.losses import normalise
from trainers.parts.options import precision
from trainers.parts.prompts import Learner
from trainers.parts.two_stages import TwoStages


@TRAINER_REGISTRY.register()
class TwoSFS(PromptTrainer):
    """Cross-entropy on cosine logits; the second stage starts at the text features of the first and freezes the towers.

    New classes are encoded by the adapted text tower; those of training keep their row of the classifier.
    """

    node, model_name = "TWO_SFS", "two_sfs"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "TWO_SFS",
            {
                "FIRST": Option(0.6, "α, share of the steps that the first stage has", above=0, high=1),
                "TOWERS": Option(("text", "vision"), "towers whose layer norms learn", choices=("text", "vision")),
                "NORMS": Option("all", "blocks: those inside the blocks alone, as released", choices=("all", "blocks")),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        long_names = getattr(self.dm.dataset, "long_names", False)
        own = self.options
        return TwoStages(model, classnames, self.template, long_names, tuple(own.TOWERS), own.NORMS == "blocks")

    def build_model(self) -> None:
        super().build_model()
        self.begin(second=False)

    def begin(self, second: bool) -> None:
        """Start a stage, with gradients averaged over the processes of what learns in it."""
        learner: Any = self.model.learner
        learner.begin(second)
        self.parallel_model = self.parallel(self.model)

    def register_learned(self, name: str, learned: nn.Module, params=None) -> None:
        part, batches = self.cfg.OPTIM, max(1, len(self.train_loader_x))
        if part.WARMUP_EPOCH > 0:
            raise ValueError(f"OPTIM.WARMUP_EPOCH is {part.WARMUP_EPOCH}, but the stages of 2SFS have none: set it 0")
        total = part.MAX_EPOCH * batches
        self.first_steps = max(1, int(self.options.FIRST * total))

        def factor(step: int) -> float:
            start, stop = (0, self.first_steps) if step < self.first_steps else (self.first_steps, total)
            end, turn = part.FINAL_LR / part.LR, math.pi * (step - start) / max(1, stop - start)
            return end + (1 - end) * (1 + math.cos(turn)) / 2

        self.optim = build_optimizer(learned, part)
        schedule: Any = LambdaLR(self.optim, factor)
        schedule.by_batch = True
        self.sched = schedule
        self.register_model(name, learned, self.optim, schedule)

    def before_train(self) -> None:
        super().before_train()
        learner: Any = self.model.learner
        self.begin(learner.in_second)  # as a run that goes on has it

    def forward_backward(self, batch) -> dict[str, float]:
        learner: Any = self.model.learner
        if not learner.in_second and self.sched.last_epoch >= self.first_steps:
            self.embed(range(len(learner.classifier)))
            learner.zero_grad()
            self.begin(second=True)
        return super().forward_backward(batch)

    @torch.no_grad()
    def embed(self, classes: Iterable[int]) -> None:
        """Give some classes the row of the classifier that their sentence has in the text tower as it is."""
        learner: Any = self.model.learner
        if rows := list(classes):
            with self.test_precision.autocast():
                text = self.model.clip.encode_text(learner.ids[rows], tokens=False).pooled
            learner.classifier[rows] = normalise(text)

    def before_inference(self) -> None:
        learner: Any = self.model.learner
        self.embed(learner.unknown)
        learner.unknown = []
        super().before_inference()

    def for_classes(self, path, checkpoint) -> dict[str, Tensor]:
        """Rows of the classifier by the names of the classes; those without one are encoded before an evaluation."""
        weights, names = dict(checkpoint["state_dict"]), self.classnames()
        known = dict(zip(checkpoint.get("classnames") or names, weights.get("classifier", ())))
        learner: Any = self.model.learner
        learner.unknown = [k for k, name in enumerate(names) if name not in known]
        weights["classifier"] = torch.stack(
            [known.get(name, torch.zeros_like(learner.classifier[0])) for name in names]
        )
        return weights

    def changes_images(self) -> str:
        return "the method trains the image tower" if "vision" in self.options.TOWERS else super().changes_images()
