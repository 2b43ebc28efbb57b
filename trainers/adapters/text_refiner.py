"""TextRefiner: class features refined by a memory of local image features (Xie et al., AAAI 2025, the CoOp form)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import CLIP, Encoded, Record
from trainers.base import PromptTrainer, Score
from trainers.parts.engine import TRAINER_REGISTRY, Option, distributed, method_options
from trainers.parts.losses import normalise
from trainers.parts.options import context, context_init, count, precision, weight
from trainers.parts.prompts import Learner, TextContext, feature_map, vision_blocks


class Refiner(TextContext):
    """CoOp's context, a map of local features to the text's space, and a memory of them that refines class features.

    `size`: entries M of the memory; `top`: patches k that the class token sees most; `alpha`: factor of the change.
    """

    reads_inside = property(lambda self: self.training)  # type: ignore[assignment]
    attention_inside = (-1,)
    memory: Tensor

    def __init__(self, model: CLIP, names: Sequence[str], n_ctx: int, init: str, size: int, top: int, alpha: float):
        super().__init__(model, names, n_ctx, init)
        vision_blocks(model)  # a tower without attention over patches is refused
        width = model.text_projection.shape[1]
        self.top, self.alpha = top, alpha
        self.align = feature_map(width, width)
        self.extract = nn.Linear(2 * width, width, bias=False)
        self.register_buffer("memory", normalise(torch.rand(size, width)))

    def image_features(self, encoded: Encoded, seen: Record) -> Encoded:
        """Class token, then the patches in the order of its attention, the mean over the heads of the last block."""
        order = seen.attention[-1].mean(dim=1)[:, 0, 1:].argsort(dim=1, descending=True)  # (B, P)
        if self.top > order.shape[1]:
            raise ValueError(f"TRAINER.TEXT_REFINER.TOP is {self.top}, but an image has {order.shape[1]} patches")
        patches = encoded.tokens[:, 1:].gather(1, order[..., None].expand_as(encoded.tokens[:, 1:]))
        return Encoded(encoded.pooled, torch.cat([encoded.tokens[:, :1], patches], dim=1))

    def local(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, E) in the space of the text, in fp32 also under autocast."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.align(tokens.float().flatten(0, 1)).unflatten(0, tokens.shape[:2])

    def refine(self, text: Tensor) -> Tensor:
        """Normalised class features (C, E) and alpha times a linear map of them and of what the memory says of them."""
        with torch.autocast(text.device.type, enabled=False):
            read = (text @ self.memory.T).softmax(dim=1) @ self.memory
            return text + self.alpha * self.extract(torch.cat([text, read], dim=1))

    def write(self, rows: Tensor, momentum: float) -> None:
        """Move every entry towards those normalised features (R, E) whose nearest it is, most to the nearest."""
        score = rows @ self.memory.T  # (R, M)
        nearest = score.argmax(dim=1, keepdim=True)
        share = (score - score.amax(dim=0)).exp()
        share = torch.zeros_like(score).scatter(1, nearest, share.gather(1, nearest))
        self.memory.copy_(normalise(momentum * self.memory + (1 - momentum) * share.T @ rows))


@TRAINER_REGISTRY.register()
class TextRefiner(PromptTrainer):
    """Product of normalised image features and refined class features; the memory fills from the images of training."""

    node, model_name = "TEXT_REFINER", "text_refiner"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "N_CTX": context(4),
            "CTX_INIT": context_init("a photo of a"),
            "MEMORY_SIZE": count(25, "M, entries of the memory"),
            "MOMENTUM": Option(0.8, "γ, share of an entry that a step leaves", low=0, high=1),
            "ALPHA": weight(0.2, "α, factor of what is added to the class features"),
            "TOP": count(5, "k, patches of an image that are compared with its class"),
            "SEMANTIC": weight(0.02, "λ, weight of the local cross-entropy; 1 / 50 in the release"),
            "REGULAR": weight(20.0, "μ, weight of the distance of refined class features from those of the context"),
            "PREC": precision(),
        }
        return method_options("TEXT_REFINER", options)

    def build_learner(self, model, classnames) -> Learner:
        own = self.options
        self.locals: list[Tensor] = []  # mapped tokens of the batches of this step
        return Refiner(model, classnames, own.N_CTX, own.CTX_INIT, own.MEMORY_SIZE, own.TOP, own.ALPHA)

    def build_score(self, learner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            with torch.autocast(image.pooled.device.type, enabled=False):
                return scale.float() * normalise(image.pooled) @ learner.refine(normalise(text.pooled)).T

        return score

    def losses(self, batch) -> dict[str, Tensor]:
        (image, label), own, learner = self.parse_batch_train(batch), self.options, cast(Refiner, self.model.learner)
        output = self.parallel_model(image)
        local, text = learner.local(output.image.tokens), normalise(output.text.pooled)
        self.locals.append(local.detach())
        chosen = torch.cat([local[:, : 1 + own.TOP], local.mean(dim=1, keepdim=True)], dim=1)  # (B, k + 2, E)
        with torch.autocast(text.device.type, enabled=False):
            logits = self.model.clip.logit_scale.exp().float() * chosen.flatten(0, 1) @ text.T
        return {
            "ce": F.cross_entropy(output.logits, label),
            "semantic": own.SEMANTIC * F.cross_entropy(logits, label.repeat_interleave(chosen.shape[1])),
            "regular": own.REGULAR * F.l1_loss(normalise(learner.refine(text)), text),
        }

    def after_step(self) -> None:
        rows = normalise(torch.cat(self.locals).flatten(0, 1))
        cast(Refiner, self.model.learner).write(distributed.gather(rows), self.options.MOMENTUM)
        self.locals = []
