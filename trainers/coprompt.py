"""CoPrompt: prompts and adapters of both towers that stay consistent with CLIP (Roy and Etemad, ICLR 2024)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import CLIP, Encoded
from trainers.base import PromptTrainer, Score, template_features
from trainers.parts.descriptions import description_features
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import cosine_distance, cosine_logits, normalise
from trainers.parts.modes import MultiModeLearner
from trainers.parts.options import context_init, count, precision, share, weight
from trainers.parts.prompts import Learner
from trainers.parts.teacher import Teacher


class Adapter(nn.Module):
    """ρ relu(W2 relu(W1 x)) + (1 - ρ) x, W1 (E / r, E) and W2 (E, E / r)."""

    def __init__(self, width: int, reduction: int, ratio: float):
        super().__init__()
        if not 1 <= reduction <= width:
            raise ValueError(f"TRAINER.COPROMPT.REDUCTION is {reduction}, expected 1 to {width}, the features' width")
        hidden, self.ratio = width // reduction, ratio
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, E), not normalised, in fp32 also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return self.ratio * self.up(self.down(x).relu()).relu() + (1 - self.ratio) * x


def sentence_features(model: CLIP, descriptions: list[list[str]]) -> Tensor:
    """Normalised features (K, C, E) of the sentences of every class, whose sentences are repeated up to the most, K."""
    features = [normalise(feature) for feature in description_features(model, descriptions)]
    most = max(len(feature) for feature in features)
    return torch.stack([feature[torch.arange(most) % len(feature)] for feature in features], dim=1)


@TRAINER_REGISTRY.register()
class CoPrompt(PromptTrainer):
    """Cosine logits of adapted features of MaPLe's prompts; both sides are kept near plain CLIP's.

    Plain CLIP reads a sentence about every class, another one in every step, and sees another view of the images.
    """

    node, model_name = "COPROMPT", "MultiModalPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "N_CTX": count(2, "b, prompt length, the same in both towers"),
            "CTX_INIT": context_init("a photo of a", "words that start the context of the input layer"),
            "KEEP_REST": Option(True, "words of CTX_INIT beyond b stay, frozen, before the name"),
            "PROMPT_DEPTH": count(9, "J, layers with their own prompts; 1 = input only"),
            "SHARED_START": Option(True, "the maps of layers 1 to J - 1 start as copies of one, as released"),
            "IMAGE_RATIO": share(0.1, "ρ of the image adapter"),
            "TEXT_RATIO": share(0.2, "ρ of the text adapter"),
            "REDUCTION": count(4, "r, width of the features over that of the adapters' hidden layers"),
            "W": weight(1.0, "λ, of both consistency terms; the release has one per data set"),
            "DISTANCE": Option(
                "cosine", "1 - cosine, or the mean squared difference of normalized features", choices=("cosine", "mse")
            ),
            "HALF_PROMPTS": Option(False, "deep and visual prompts are rounded through fp16, as released"),
            "PREC": precision(),
        }
        return method_options("COPROMPT", options)

    def build_learner(self, model, classnames) -> Learner:
        own = self.options
        prompts = {"init": own.CTX_INIT, "keep_rest": own.KEEP_REST, "shared_start": own.SHARED_START}
        prompts["half_prompts"] = own.HALF_PROMPTS
        learner = MultiModeLearner(model, classnames, own.N_CTX, own.PROMPT_DEPTH, **prompts)
        width = model.text_projection.shape[1]
        learner.image_adapter = Adapter(width, own.REDUCTION, own.IMAGE_RATIO)
        learner.text_adapter = Adapter(width, own.REDUCTION, own.TEXT_RATIO)
        if self.cfg.DATASET.DESCRIPTIONS:
            self.described = sentence_features(model, self.descriptions)  # (K, C, E)
        else:
            self.described = template_features(model, classnames, [self.template])
        self.teacher = Teacher(model, self.described[0])
        return learner

    def build_score(self, learner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            return cosine_logits(learner.image_adapter(image.pooled), learner.text_adapter(text.pooled), scale)

        return score

    def distance(self, feature: Tensor, known: Tensor) -> Tensor:
        """Mean over the rows of two sets of features (rows, E)."""
        if self.options.DISTANCE == "mse":
            return F.mse_loss(normalise(feature), normalise(known))
        return cosine_distance(feature, known)

    def losses(self, batch) -> dict[str, Tensor]:
        (image, label), learner = self.parse_batch_train(batch), cast(Any, self.model.learner)
        output = self.parallel_model(image)
        seen = self.teacher.image(self.views_of(batch)[-1])
        said = self.described[int(torch.randint(len(self.described), ()))]
        return {
            "ce": F.cross_entropy(output.logits, label),
            "text": self.options.W * self.distance(learner.text_adapter(output.text.pooled), said),
            "image": self.options.W * self.distance(learner.image_adapter(output.image.pooled), seen),
        }
