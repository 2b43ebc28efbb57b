"""KgCoOp: learned text features are kept near those of hand-made sentences (Yao et al., CVPR 2023)."""

from __future__ import annotations

from torch import Tensor
from yacs.config import CfgNode

from trainers.parts.engine import TRAINER_REGISTRY, method_options
from trainers.parts.losses import cosine_distance
from trainers.parts.options import context, context_init, precision, weight
from trainers.parts.prompts import Learner, TextContext
from trainers.parts.teacher import Teacher

from .base import Output, PromptTrainer, template_features

# Sentences of the teacher where they are not those of zero-shot CLIP.
TEACHER_TEMPLATES = {"DescribableTextures": "a photo of a {}, a type of texture."}


@TRAINER_REGISTRY.register()
class KgCoOp(PromptTrainer):
    """CoOp's context, trained by cross-entropy and W times the mean cosine distance to frozen text features.

    The released code always starts from "a photo of a"; CTX_INIT "" gives N_CTX random vectors instead.
    """

    node = "KGCOOP"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "KGCOOP",
            {
                "N_CTX": context(4),
                "CTX_INIT": context_init("a photo of a"),
                "W": weight(8.0, "weight of the distance to the hand-made sentences; 0 is CoOp"),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        learner = TextContext(model, classnames, self.options.N_CTX, self.options.CTX_INIT)
        features = template_features(model, classnames, [self.teacher_template(TEACHER_TEMPLATES)])
        self.teacher = Teacher(model, features[0])
        return learner

    def extra_losses(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        distance = cosine_distance(output.text.pooled, self.teacher.text)
        return {"kg": self.options.W * distance}
