"""Zero-shot CLIP: the classifier is the data set's template around each class name (CLIP, Section 3.1)."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer
from .prompts import Learner, TemplateText


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Nothing is learned; training has no effect and evaluation is the whole run."""

    node = "ZEROSHOT"

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode({"ZEROSHOT": {"PREC": "fp16"}})  # precision of the backbone: fp32, fp16, amp or bf16

    def build_learner(self, model, classnames) -> Learner:
        return TemplateText(model, classnames, self.template)
