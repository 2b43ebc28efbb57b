"""MaPLe: deep text prompts, and linear maps of them as visual prompts (Khattak et al., CVPR 2023, Section 3.2)."""

from __future__ import annotations

from yacs.config import CfgNode

from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.modes import MultiModeLearner
from trainers.parts.options import VISION_SCALE, context_init, count, precision
from trainers.parts.prompts import Learner

from .base import PromptTrainer


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Cosine logits; the visual prompts of each of the first J layers are a linear map of the textual ones (Eq. 6)."""

    node = "MAPLE"
    cuts_phrases = True
    model_name = "MultiModalPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "MAPLE",
            {
                "N_CTX": count(2, "b, prompt length, the same in both towers"),
                "CTX_INIT": context_init("a photo of a", "words that start the context of the input layer"),
                "KEEP_REST": Option(True, "words of CTX_INIT beyond b stay, frozen, before the name"),
                "PROMPT_DEPTH": count(9, "J, layers with their own prompts; 1 = input only"),
                "SHARED_START": Option(False, "the maps of layers 1 to J - 1 start as copies of one, as released"),
                "VISION_SCALE": VISION_SCALE,
                "PREC": precision(),
            },
        )

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
