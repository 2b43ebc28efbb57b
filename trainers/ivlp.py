"""IVLP: independent deep prompts of both towers (the baseline of MaPLe, Section 4.1, and of PromptSRC, Section 3.1).

With PROMPT_DEPTH_VISION 0 it is deep language prompting.
"""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import SCALE_RULE, Learner

from .base import PromptTrainer


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Cosine logits; textual and visual prompts share nothing and may differ in length and depth."""

    node = "IVLP"
    model_name = "VLPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {
                "IVLP": {
                    "N_CTX_TEXT": 2,  # number n of context vectors per layer
                    "N_CTX_VISION": 2,  # number m of visual prompt vectors per layer
                    "CTX_INIT": "a photo of a",  # words that start the context of the input layer; empty = random
                    "KEEP_REST": True,  # words of CTX_INIT beyond N_CTX_TEXT stay, frozen, in the sentence
                    "PROMPT_DEPTH_TEXT": 9,  # J_t, layers with their own context; 1 = input only
                    "PROMPT_DEPTH_VISION": 9,  # J_v, layers with visual prompts; 1 = input only, 0 = none
                    "HALF_PROMPTS": False,  # deep and visual prompts rounded through fp16, as in the released code
                    "VISION_SCALE": 1.0,  # factor on the visual prompts at the start; 0 = they start at zero
                    "PREC": "fp16",  # fp32, fp16, amp or bf16
                }
            }
        )

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        positive = (lambda value: value >= 1, "at least 1")
        self.check_options(
            cfg,
            {
                "N_CTX_TEXT": positive,
                "N_CTX_VISION": positive,
                "PROMPT_DEPTH_TEXT": positive,
                "PROMPT_DEPTH_VISION": (lambda value: value >= 0, "0 (no visual prompts) or more"),
                **SCALE_RULE,
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return MultiModeLearner(
            model,
            classnames,
            n_ctx=options.N_CTX_TEXT,
            depth=options.PROMPT_DEPTH_TEXT,
            init=options.CTX_INIT,
            keep_rest=options.KEEP_REST,
            coupled=False,
            vision_n_ctx=options.N_CTX_VISION,
            vision_depth=options.PROMPT_DEPTH_VISION,
            half_prompts=options.HALF_PROMPTS,
            vision_scale=options.VISION_SCALE,
        )
