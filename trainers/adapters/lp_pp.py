"""LP++: a linear probe blended with the text classifier (Huang et al., CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Encoded
from trainers.base import PromptTrainer, Score
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.losses import normalise
from trainers.parts.options import count, precision, templates, weight
from trainers.parts.prompts import FixedText, Learner
from trainers.parts.support import check_every_class, support_features


class Blended(FixedText):
    """weight (C, E), bias (C,) and alpha (C,): logits f (W + alpha T) + b of normalised image features f (B, E)."""

    class_bound = True

    def __init__(self, features: Tensor):
        super().__init__(features)
        self.weight = nn.Parameter(torch.zeros_like(features))
        self.bias, self.alpha = (nn.Parameter(features.new_zeros(len(features))) for _ in range(2))

    def text_features(self) -> Encoded | None:
        mixed = self.weight + self.alpha[:, None] * self.features
        return Encoded(mixed, mixed[:, None])

    def linear(self) -> tuple[Tensor, Tensor, bool] | None:
        return self.weight + self.alpha[:, None] * self.features, self.bias, True

    def logits(self, feature: Tensor) -> Tensor:
        """(B, C) from normalised features (B, E)."""
        return feature @ self.weight.T + self.bias + self.alpha * (feature @ self.features.T)

    def accuracy(self, image: Tensor, label: Tensor) -> float:
        """Percentage of image features (V, E) that are put into their class (V,)."""
        return 100 * float((self.logits(normalise(image)).argmax(dim=1) == label).float().mean())


@TRAINER_REGISTRY.register()
class LPPP(PromptTrainer):
    """Full-batch descent on cross-entropy with step sizes from the features; the epoch is chosen on validation images.

    The features of training and validation images are computed once.
    """

    node, model_name, by_steps, own_templates = "LPPP", "lp_pp", False, "imagenet7"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "LPPP",
            {
                "EPOCHS": count(300, "steps, each on all training images"),
                "ALPHA_EVERY": count(10, "steps between two of alpha"),
                "ALPHA_GRADIENT": Option(
                    "released", "of a step of alpha: the sum over all steps so far, or current", ("released", "current")
                ),
                "INIT_ALPHA": weight(250.0, "alpha at the start over the mean cosine with the own class"),
                "BIAS": Option(True, "a bias, as released; the paper's logits have none"),
                "SELECT": Option("val", "the step that is kept: best on validation images, or last", ("val", "last")),
                "TEMPLATES": templates(),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        return Blended(self.text_classifier(model, classnames))

    def build_score(self, learner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            with torch.autocast(image.pooled.device.type, enabled=False):
                return normalise(image.pooled) @ text.pooled.T + learner.bias

        return score

    def chosen_on(self) -> str | None:
        return "val" if self.options.SELECT == "val" and self.has_own_val else None

    def fit(self) -> dict[str, float]:
        """Fits weight, bias and alpha; raises ValueError if a class has no training image."""
        own, learner = self.options, self.model.learner
        assert isinstance(learner, Blended)
        (feature,), label = support_features(self, views=1)
        check_every_class(self, label)
        feature = normalise(feature)
        val = self.frozen_features(self.val_loader) if self.chosen_on() else None
        one_hot = F.one_hot(label, self.num_classes).to(feature)
        cosine = feature @ learner.features.T  # (K, C)
        alpha_step = len(feature) / (4 * cosine.square().sum(dim=0).max())
        with torch.no_grad():
            learner.weight.copy_(one_hot.T @ feature)
            learner.alpha.fill_(own.INIT_ALPHA * ((one_hot * cosine).sum(dim=0) / one_hot.sum(dim=0)).mean())
        step = 4 * len(feature) / float(torch.linalg.eigvalsh(feature.T @ feature)[-1])
        optim = torch.optim.SGD([learner.weight, learner.bias][: 1 + own.BIAS], step, momentum=0.9)
        best, kept = -1.0, learner.state_dict()
        for number in range(1, own.EPOCHS + 1):
            optim.zero_grad()
            if own.ALPHA_GRADIENT == "current":
                learner.alpha.grad = None
            F.cross_entropy(learner.logits(feature), label).backward()
            optim.step()
            gradient = learner.alpha.grad
            assert gradient is not None
            with torch.no_grad():
                if number % own.ALPHA_EVERY == 0:
                    learner.alpha.sub_(alpha_step * gradient)
                found = float(number) if val is None else learner.accuracy(*val)
            if found >= best:  # the later of equals, as released
                best, kept = found, {name: value.clone() for name, value in learner.state_dict().items()}
        learner.load_state_dict(kept)
        learner.zero_grad()
        return {"alpha": float(learner.alpha.detach().mean()), **({} if val is None else {"val_accuracy": best})}
