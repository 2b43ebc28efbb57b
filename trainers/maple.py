"""MaPLe: deep text prompts, and linear maps of them as visual prompts (Khattak et al., CVPR 2023, Section 3.2)."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import SCALE_RULE, Learner

from .base import PromptTrainer


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Cosine logits; the visual prompts of each of the first J layers are a linear map of the textual ones (Eq. 6)."""

    node = "MAPLE"
    model_name = "MultiModalPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {
                "MAPLE": {
                    "N_CTX": 2,  # prompt length b, the same in both towers
                    "CTX_INIT": "a photo of a",  # words that start the context of the input layer; empty = random
                    "KEEP_REST": True,  # words of CTX_INIT beyond N_CTX stay, frozen, in the sentence
                    "PROMPT_DEPTH": 9,  # J, layers with their own prompts; 1 = input only
                    "SHARED_START": False,  # the deep maps start as copies of one, as in the released code
                    "VISION_SCALE": 1.0,  # factor on the visual prompts at the start; 0 = they start at zero
                    "PREC": "fp16",  # fp32, fp16, amp or bf16
                }
            }
        )

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        positive = (lambda value: value >= 1, "at least 1")
        self.check_options(cfg, {"N_CTX": positive, "PROMPT_DEPTH": positive, **SCALE_RULE})

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return MultiModeLearner(
            model,
            classnames,
            n_ctx=options.N_CTX,
            depth=options.PROMPT_DEPTH,
            init=options.CTX_INIT,
            keep_rest=options.KEEP_REST,
            shared_start=options.SHARED_START,
            vision_scale=options.VISION_SCALE,
        )
