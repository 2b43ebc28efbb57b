"""CoCoOp: a context that depends on the image (Zhou et al., CVPR 2022, Section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn
from yacs.config import CfgNode

from clip import Encoded, Prompts
from trainers.parts.engine import TRAINER_REGISTRY, method_options
from trainers.parts.losses import normalise
from trainers.parts.options import context, context_init, count, precision
from trainers.parts.prompts import Learner, TextContext, meta_net

from .base import PromptTrainer, Score

REDUCTION = 16  # the meta-net's hidden layer is this many times narrower than the image feature


class ConditionalContext(TextContext):
    """CoOp's context v_1 ... v_n and a meta-net h that shifts all of it by one vector per image.

    v_i(x) = v_i + h(f), where f is the normalised feature of image x (Section 3.2).
    """

    conditional = True

    def __init__(self, model, classnames, n_ctx: int, init: str, chunk_rows: int):
        super().__init__(model, classnames, n_ctx, init)
        self.chunk_rows = chunk_rows
        features, width = model.visual.output_dim, self.ctx.shape[-1]
        self.meta_net = meta_net(features, features // REDUCTION, width, nn.ReLU())

    def conditional_prompts(self, image: Tensor) -> tuple[Tensor, Prompts]:
        shift = self.meta_net(normalise(image))  # (B, d)
        return self.ids, Prompts((self.ctx + shift[:, None],), self.slots)  # (B, n, d)


def cosine_by_image(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
    """scale * cosine of every image (B, E) with its own text of every class (B * C, E), in fp32: (B, C)."""
    own = normalise(text.pooled).unflatten(0, (len(image.pooled), -1))  # (B, C, E)
    return scale.float() * (own * normalise(image.pooled)[:, None]).sum(dim=-1)


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Cosine logits of an image with its own sentences `[v_1(x)] ... [v_n(x)] NAME.`, trained by cross-entropy.

    Every image needs a pass of the text tower over all classes, in training and in evaluation.
    """

    node = "COCOOP"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "COCOOP",
            {
                "N_CTX": context(16),
                "CTX_INIT": context_init(),
                "CHUNK_ROWS": count(512, "(image, class) pairs whose text is encoded at once; fewer need less memory"),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return ConditionalContext(model, classnames, options.N_CTX, options.CTX_INIT, options.CHUNK_ROWS)

    def build_score(self, learner) -> Score:
        return cosine_by_image
