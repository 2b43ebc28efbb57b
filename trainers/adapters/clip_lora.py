"""CLIP-LoRA: low-rank adapters in the attention of both towers (Zanella and Ben Ayed, CVPR workshops 2024)."""

from yacs.config import CfgNode

from clip.adapters import LowRank
from dassl.engine import TRAINER_REGISTRY
from trainers.base import PromptTrainer
from trainers.parts.prompts import Learner, TemplateText

EXPONENTS = {"sqrt": 0.5, "rank": 1.0}


@TRAINER_REGISTRY.register()
class CLIPLoRA(PromptTrainer):
    """Cross-entropy on the cosine logits of the data set's template; only the adapters learn."""

    node, model_name = "CLIP_LORA", "lora"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "RANK": 2,
            "ALPHA": 1.0,  # numerator of the factor of B A
            "SCALE": "sqrt",  # its denominator: sqrt of the rank (released), or the rank (LoRA)
            "DROPOUT": 0.25,  # on the input of the adapters, in training
            "TOWERS": ("text", "vision"),  # both, or one of them
            "PARAMS": ("q", "k", "v"),  # of q, k, v, out, fc1, fc2
            "POSITION": "all",  # all, bottom, mid, up, half-bottom, half-up, top1, top2 or top3
            "PREC": "fp16",  # fp32, fp16, amp or bf16
        }
        return CfgNode({"CLIP_LORA": options})

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        scales = (EXPONENTS.__contains__, f"one of {', '.join(EXPONENTS)}")
        self.check_options(cfg, {"SCALE": scales, "RANK": (lambda rank: rank >= 1, "at least 1")})

    def build_learner(self, model, classnames) -> Learner:
        own = self.options
        learner = TemplateText(model, classnames, self.template, getattr(self.dm.dataset, "long_names", False))
        scale = own.ALPHA / own.RANK ** EXPONENTS[own.SCALE]
        learner.adapters = model.add_adapters(
            lambda linear, _: LowRank(linear, own.RANK, scale, own.DROPOUT), own.TOWERS, own.POSITION, own.PARAMS
        )
        return learner
