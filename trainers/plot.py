"""PLOT: several learned contexts per class, matched to the local features of the image by optimal transport.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023.
"""

from __future__ import annotations

from torch import Tensor
from yacs.config import CfgNode

from clip import Encoded
from dassl.engine import TRAINER_REGISTRY
from trainers.parts.losses import cosine_logits
from trainers.parts.prompts import CLASS_POSITIONS, Learner, ModeContext, build_sentences, random_prompt
from transport.scores import PLOT_OPTIONS, PLOT_RULES, SetTransport

from .base import PromptTrainer, Score

POOLED = ("imagenet", "always", "never")


@TRAINER_REGISTRY.register()
class PLOT(PromptTrainer):
    """N contexts per class; logit = scale * sum(T * S) over local features and contexts (PLOT, Eq. 5 to 8).

    S holds the cosines of the image's local features (patches of a ViT, positions of a ResNet's last map, both through
    the head that CLIP applies to the pooled feature) and the class's N sentences, T their plan for the cost 1 - S.
    """

    node = "PLOT"
    local_features = True

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {
                "PLOT": {
                    "PREC": "fp16",  # fp32, fp16, amp or bf16; transport is computed in fp32 in every mode
                    "N": 4,  # contexts per class
                    "N_CTX": 16,  # vectors of a context; they start random
                    "CSC": False,  # class-specific contexts
                    "CLASS_TOKEN_POSITION": "end",  # end, middle or front
                    # adds scale * cosine of the pooled features: imagenet = if the data set is named exactly ImageNet
                    # (the released code; its variants do without), always or never
                    "POOLED": "imagenet",
                    **PLOT_OPTIONS,
                }
            }
        )

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_options(
            cfg,
            {
                "N": (lambda value: value >= 1, "at least 1"),
                "N_CTX": (lambda value: value >= 1, "at least 1"),
                "CLASS_TOKEN_POSITION": (CLASS_POSITIONS.__contains__, f"one of {', '.join(CLASS_POSITIONS)}"),
                "POOLED": (POOLED.__contains__, f"one of {', '.join(POOLED)}"),
                **PLOT_RULES,
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        sentences = build_sentences(model, classnames, options.N_CTX, position=options.CLASS_TOKEN_POSITION)
        ids, slots = (x.unsqueeze(1).expand(-1, options.N, -1) for x in (sentences.ids, sentences.slots))
        classes = (len(classnames),) if options.CSC else ()
        width = model.token_embedding.weight.shape[1]
        return ModeContext(ids, slots, random_prompt(*classes, options.N, options.N_CTX, width).detach())

    def build_score(self, learner) -> Score:
        options = self.options
        pooled = options.POOLED == "always" or (options.POOLED == "imagenet" and self.cfg.DATASET.NAME == "ImageNet")
        self.transport = transport = SetTransport(options)

        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            prompts = text.pooled.float().unflatten(0, (-1, options.N))  # (C, N, E)
            scores = transport(image.tokens[:, 1:], prompts, scale)  # tokens without the pooled feature
            return scores + cosine_logits(image.pooled, prompts.mean(dim=1), scale) if pooled else scores

        return score

    def extra_metrics(self) -> dict[str, Tensor]:
        return self.transport.entropy
