"""IVLP: independent deep prompts of both towers (the baseline of MaPLe, Section 4.1, and of PromptSRC, Section 3.1).

With PROMPT_DEPTH_VISION 0 it is deep language prompting.
"""

from __future__ import annotations

from yacs.config import CfgNode

from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.modes import independent_prompts
from trainers.parts.options import VISION_SCALE, context_init, count, precision
from trainers.parts.prompts import Learner

from .base import PromptTrainer


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Cosine logits; textual and visual prompts share nothing and may differ in length and depth."""

    node = "IVLP"
    cuts_phrases = True
    model_name = "VLPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "IVLP",
            {
                "N_CTX_TEXT": count(2, "n, context vectors per layer"),
                "N_CTX_VISION": count(2, "m, visual prompt vectors per layer"),
                "CTX_INIT": context_init("a photo of a", "words that start the context of the input layer"),
                "KEEP_REST": Option(True, "words of CTX_INIT beyond n stay, frozen, before the name"),
                "PROMPT_DEPTH_TEXT": count(9, "J_t, layers with their own context; 1 = input only"),
                "PROMPT_DEPTH_VISION": count(9, "J_v, layers with visual prompts; 1 = input only, 0 = none", low=0),
                "HALF_PROMPTS": Option(False, "deep and visual prompts are rounded through fp16, as released"),
                "VISION_SCALE": VISION_SCALE,
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        return independent_prompts(model, classnames, self.options, half_prompts=self.options.HALF_PROMPTS)
