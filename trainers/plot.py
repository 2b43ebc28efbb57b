"""PLOT: several learned contexts per class, matched to the local features of the image by optimal transport.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from clip import Encoded
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import cosine_logits
from trainers.parts.modes import ModeContext, mode_phrases, mode_sentences, start_with_phrases
from trainers.parts.options import CLASS_TOKEN_POSITION, PLOT_OPTIONS, count, precision
from trainers.parts.prompts import Learner, random_prompt
from trainers.parts.set_transport import SetTransport
from transport.arguments import full_precision, without_autocast
from transport.sinkhorn import sinkhorn

from .base import PromptTrainer, Score

POOLED = ("imagenet", "always", "never")


@without_autocast
def plot_logits(
    u: Tensor,
    w: Tensor,
    scale: Tensor | float,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    stop: str = "marginal",
) -> tuple[Tensor, Tensor]:
    """PLOT's transport, as it is defined (Eq. 5 to 8): logits (B, C) and plans T (B, C, M, N), which are constants.

    Args:
        u, w: features (B, M, E) of images and (C, N, E) of classes.
        scale: logit scale.
        reg, max_iter, threshold, stop: see `sinkhorn`; under `scaling_change` all problems stop together.
    """
    u, w = (F.normalize(full_precision(v), dim=-1) for v in (u, w))
    S = torch.einsum("bme,cne->bcmn", u, w)
    rows, cols = (S.new_full((size,), 1 / size) for size in S.shape[2:])
    T = sinkhorn(1 - S, rows, cols, reg, max_iter, threshold, stop, 1 if stop == "marginal" else None).plan
    return scale * (T * S).sum((-2, -1)), T


@TRAINER_REGISTRY.register()
class PLOT(PromptTrainer):
    """N contexts per class; logit = scale * sum(T * S) over local features and contexts (PLOT, Eq. 5 to 8).

    S holds the cosines of the image's local features (patches of a ViT, positions of a ResNet's last map, both through
    the head that CLIP applies to the pooled feature) and the class's N sentences, T their plan for the cost 1 - S.
    """

    node = "PLOT"
    cuts_phrases = True
    local_features = True

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "PLOT",
            {
                "N": count(4, "contexts per class"),
                "N_CTX": count(16, "vectors of a context, drawn from N(0, 0.02²)"),
                "CTX_INIT": Option(
                    "",
                    "words that start context 0, the others are random; or a list, a text for each; words beyond N_CTX "
                    "stay, frozen, behind the context",
                    texts=True,
                ),
                "CSC": Option(False, "separate contexts for every class"),
                "CLASS_TOKEN_POSITION": CLASS_TOKEN_POSITION,
                "POOLED": Option(
                    "imagenet",
                    "adds scale * cosine of the pooled features: imagenet = if DATASET.NAME is exactly ImageNet (the "
                    "released code; its variants do without)",
                    choices=POOLED,
                ),
                "FAST": Option(True, "False: transport as `plot_logits` defines it, in more memory and time"),
                **PLOT_OPTIONS,
                "PREC": precision(more="; transport is computed in fp32 in every mode"),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        phrases = mode_phrases(options.CTX_INIT, options.N)
        position = options.CLASS_TOKEN_POSITION
        sentences = mode_sentences(model, classnames, options.N_CTX, phrases, position=position)
        classes = (len(classnames),) if options.CSC else ()
        ctx = random_prompt(*classes, options.N, options.N_CTX, model.token_embedding.weight.shape[1]).detach()
        start_with_phrases(model, ctx, phrases)
        return ModeContext(sentences.ids, sentences.slots, ctx)

    def build_score(self, learner) -> Score:
        options = self.options
        pooled = options.POOLED == "always" or (options.POOLED == "imagenet" and self.cfg.DATASET.NAME == "ImageNet")
        self.transport = transport = SetTransport(options, None if options.FAST else plot_logits)

        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            prompts = text.pooled.float().unflatten(0, (-1, options.N))  # (C, N, E)
            scores = transport(image.tokens[:, 1:], prompts, scale)  # tokens without the pooled feature
            return scores + cosine_logits(image.pooled, prompts.mean(dim=1), scale) if pooled else scores

        return score

    def extra_metrics(self) -> dict[str, Tensor]:
        return self.transport.metrics
