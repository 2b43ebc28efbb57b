"""VPT on CLIP: learned prompts of the image tower, fixed text features (Jia et al., ECCV 2022, Section 3.2)."""

from __future__ import annotations

from torch import Tensor
from yacs.config import CfgNode

from clip import CLIP, Prompts
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import VISION_SCALE, count, precision
from trainers.parts.prompts import FixedText, Learner, visual_prompts

from .base import PromptTrainer, template_features


class VisualPromptLearner(FixedText):
    """Visual prompts in front of the first J blocks, and class features that stay as they are.

    Args:
        model: the frozen CLIP; its image tower must be a vision transformer.
        features: (C, E) text features of the classes, not normalised.
        n_ctx: number m of prompt vectors per layer.
        depth: J; 1 = at the input only (VPT-shallow), more = VPT-deep.
        half_prompts: prompts and their gradients are rounded through fp16, image by image.
        scale: factor on the prompts at the start, 0 or more.

    Raises:
        ValueError: no prompt vector, or more layers than the tower has.
    """

    def __init__(
        self, model: CLIP, features: Tensor, n_ctx: int, depth: int, half_prompts: bool = False, scale: float = 1.0
    ):
        super().__init__(features)
        self.half_prompts = half_prompts
        self.vision = visual_prompts(model, 1, n_ctx, depth, scale)

    def vision_prompts(self) -> Prompts | None:
        return Prompts(tuple(self.vision), None)


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Cosine logits of prompted images against the data set's template around each class name.

    The released code of the MaPLe authors, whose table has the published numbers, writes "a photo of a NAME." on every
    data set (INPUT.TEMPLATE does that here) and has no option for it.
    """

    node = "VPT"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "VPT",
            {
                "N_CTX_VISION": count(2, "m, visual prompt vectors per layer"),
                "PROMPT_DEPTH_VISION": count(1, "J, layers with their own prompts; 1 = input only (shallow)"),
                "HALF_PROMPTS": Option(False, "prompts and their gradients are rounded through fp16, as released"),
                "VISION_SCALE": VISION_SCALE,
                "PREC": precision(more="; the released code computes in fp32 whatever it says"),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return VisualPromptLearner(
            model,
            template_features(model, classnames, [self.template])[0],
            n_ctx=options.N_CTX_VISION,
            depth=options.PROMPT_DEPTH_VISION,
            half_prompts=options.HALF_PROMPTS,
            scale=options.VISION_SCALE,
        )
