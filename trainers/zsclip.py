"""Zero-shot CLIP: the classifier is a sentence, or the mean of several, around each class name (CLIP, Section 3.1)."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.config import Option, method_options
from dassl.engine import TRAINER_REGISTRY
from trainers.parts.descriptions import description_ensemble, descriptions_hash
from trainers.parts.options import precision
from trainers.parts.prompts import FixedText, Learner, TemplateText
from trainers.parts.templates import TEMPLATE_SETS, template_set

from .base import PromptTrainer, ensemble_features


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Nothing is learned; training has no effect and evaluation is the whole run."""

    node = "ZEROSHOT"
    by_steps = False
    own_templates = "dataset"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "ZEROSHOT",
            {
                "TEMPLATES": Option(
                    "",
                    'see the table; "" = dataset for ZeroshotCLIP, released for ZeroshotCLIP2',
                    choices=("", "descriptions", *TEMPLATE_SETS),
                ),
                "PREC": precision(),
            },
        )

    @property
    def templates(self) -> tuple[str, ...]:
        """The sentences whose features are averaged."""
        return template_set(self.options.TEMPLATES or self.own_templates, self.cfg.DATASET.NAME, self.template)

    def build_learner(self, model, classnames) -> Learner:
        if self.options.TEMPLATES == "descriptions":
            return FixedText(description_ensemble(model, self.descriptions))
        if len(self.templates) == 1:
            return TemplateText(
                model, classnames, *self.templates, truncate=getattr(self.dm.dataset, "long_names", False)
            )
        return FixedText(ensemble_features(model, classnames, self.templates))

    def fingerprint_extra(self) -> dict[str, str]:
        if self.options.TEMPLATES == "descriptions":
            return {**super().fingerprint_extra(), "template": f"descriptions {descriptions_hash(self.descriptions)}"}
        return {**super().fingerprint_extra(), "template": " | ".join(self.templates)}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """ZeroshotCLIP with the ensemble of the released code of CoOp; see TRAINER.ZEROSHOT.TEMPLATES."""

    own_templates = "released"
