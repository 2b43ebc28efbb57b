"""CLIP-LoRA: low-rank adapters in the attention of both towers (Zanella and Ben Ayed, CVPR workshops 2024)."""

from yacs.config import CfgNode

from clip.adapters import LowRank
from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import count, precision
from trainers.parts.prompts import Learner, TemplateText

EXPONENTS = {"sqrt": 0.5, "rank": 1.0}


@TRAINER_REGISTRY.register()
class CLIPLoRA(PromptTrainer):
    """Cross-entropy on the cosine logits of the data set's template; only the adapters learn."""

    node, model_name = "CLIP_LORA", "lora"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "CLIP_LORA",
            {
                "RANK": count(2, "r"),
                "ALPHA": Option(1.0, "numerator of the factor of B A"),
                "SCALE": Option(
                    "sqrt", "its denominator: sqrt of the rank (released), or the rank (LoRA)", choices=tuple(EXPONENTS)
                ),
                "DROPOUT": Option(0.25, "on the input of the adapters, in training", low=0, below=1),
                "TOWERS": Option(("text", "vision"), "both, or one of them", choices=("text", "vision")),
                "PARAMS": Option(
                    ("q", "k", "v"), "products that get an adapter", choices=("q", "k", "v", "out", "fc1", "fc2")
                ),
                "POSITION": Option("all", "all, bottom, mid, up, half-bottom, half-up, top1, top2 or top3"),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        own = self.options
        learner = TemplateText(model, classnames, self.template, getattr(self.dm.dataset, "long_names", False))
        scale = own.ALPHA / own.RANK ** EXPONENTS[own.SCALE]
        learner.adapters = model.add_adapters(
            lambda linear, _: LowRank(linear, own.RANK, scale, own.DROPOUT), own.TOWERS, own.POSITION, own.PARAMS
        )
        return learner
