"""Linear probe: multinomial logistic regression on features of the frozen image tower (CLIP, Section 3.2)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import Encoded
from trainers.base import PromptTrainer, Score
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.logistic_regression import Regression, fit_regression, search_strength
from trainers.parts.options import count, precision
from trainers.parts.prompts import Learner
from trainers.parts.support import check_every_class, support_features

logger = logging.getLogger(__name__)

WITHOUT_VAL = 0.316  # C of CLIP's own example


class LinearClassifier(Learner):
    """weight (C, E) and bias (C,) of the logits; zero until they are fitted."""

    class_bound = True

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def text_features(self) -> Encoded | None:
        return Encoded(self.weight, self.weight[:, None])

    def linear(self) -> tuple[Tensor, Tensor, bool] | None:
        return self.weight, self.bias, False


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    """logit = W x + b on the image feature x of plain CLIP, not normalised, without augmentation.

    The features of training and validation images are computed once. The regularisation is searched on the validation
    images. Nothing says what a new class looks like, so there is no zero-shot evaluation.
    """

    node = "LINEAR_PROBE"
    model_name = "linear_probe"
    by_steps = False

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "LINEAR_PROBE",
            {
                "C": Option(
                    None, "κ, inverse regularisation; None = searched on the validation images", above=0, kind=float
                ),
                "ROUNDS": count(8, "of the search after the grid", low=0),
                "MAX_ITER": count(1000, "of L-BFGS; a fit that stops there is named in a warning"),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        return LinearClassifier(len(classnames), model.visual.output_dim)

    def build_score(self, learner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            with torch.autocast(image.pooled.device.type, enabled=False):
                return image.pooled.float() @ text.pooled.T + learner.bias

        return score

    @property
    def searched(self) -> bool:
        """True if C is searched: it is not given, and there are validation images other than the test images."""
        return self.options.C is None and self.has_own_val

    def chosen_on(self) -> str | None:
        return "val" if self.searched else None

    def fit(self) -> dict[str, float]:
        """Fits the classifier; raises ValueError if a class has no training image."""
        (feature,), label = support_features(self)
        check_every_class(self, label)
        train = self.as_arrays(feature, label)
        fitted: dict[float, Regression] = {}

        def fit(strength: float) -> Regression:
            if strength not in fitted:
                fitted[strength] = fit_regression(*train, strength, self.options.MAX_ITER)
            return fitted[strength]

        figures = {}
        if self.searched:
            val = self.as_arrays(*self.frozen_features(self.val_loader))
            strength = search_strength(lambda value: fit(value).accuracy(*val), self.options.ROUNDS)
            figures["val_accuracy"] = 100 * fit(strength).accuracy(*val)
        elif self.options.C is not None:
            strength = self.options.C
        else:
            logger.warning("there are no separate validation images to search C on: C is %g", WITHOUT_VAL)
            strength = WITHOUT_VAL
        chosen = fit(strength)
        if not chosen.converged:
            logger.warning("L-BFGS did not converge in %d iterations at C = %g", self.options.MAX_ITER, strength)
        learner: Any = self.model.learner
        with torch.no_grad():
            learner.weight.copy_(torch.from_numpy(chosen.weight))
            learner.bias.copy_(torch.from_numpy(chosen.bias))
        return {"C": float(strength), **figures, "train_accuracy": 100 * chosen.accuracy(*train)}

    @staticmethod
    def as_arrays(feature: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features (K, E) in double precision and labels (K,)."""
        return feature.double().cpu().numpy(), label.cpu().numpy()
