"""Zero-shot CLIP: the classifier is a sentence, or the mean of several, around each class name (CLIP, Section 3.1)."""

from __future__ import annotations

from yacs.config import CfgNode

from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, method_options
from trainers.parts.options import precision, templates
from trainers.parts.prompts import FixedText, Learner, TemplateText


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Nothing is learned; training has no effect and evaluation is the whole run."""

    node = "ZEROSHOT"
    by_steps = False

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "ZEROSHOT",
            {
                "TEMPLATES": templates('see the table; "" = dataset for ZeroshotCLIP, released for ZeroshotCLIP2'),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        if len(self.templates) == 1 and self.options.TEMPLATES not in ("descriptions", "both"):
            return TemplateText(
                model, classnames, *self.templates, truncate=getattr(self.dm.dataset, "long_names", False)
            )
        return FixedText(self.text_classifier(model, classnames))


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """ZeroshotCLIP with the ensemble of the released code of CoOp; see TRAINER.ZEROSHOT.TEMPLATES."""

    own_templates = "released"
