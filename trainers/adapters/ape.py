"""APE: a cache on the features that tell the classes apart; APE-T learns residuals on them.

Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023, Section 3.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from trainers.base import PromptTrainer, Score
from trainers.parts.cache_model import SETTINGS, TRAINED_SIMILARITY, WIDTH, RefinedCache, Settings
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import count, precision, templates, weight
from trainers.parts.prompts import Learner
from trainers.parts.support import support_features

logger = logging.getLogger(__name__)


@TRAINER_REGISTRY.register()
class APE(PromptTrainer):
    """logit = s * f W + alpha * exp(-beta * (1 - f' F')) V, f' and F' on chosen features, values V of training images.

    Without training the cache is all that is made; with FINETUNE (APE-T) residuals and weights of the values learn by
    cross-entropy. Then alpha, beta and, without training, gamma are searched on the validation images.
    """

    node, model_name, by_steps, own_templates = "APE", "ape", False, "imagenet7"

    @staticmethod
    def defaults() -> CfgNode:
        start = "before the search and in fine-tuning"
        return method_options(
            "APE",
            {
                "FINETUNE": Option(False, "APE-T"),
                "AUGMENT_EPOCH": count(10, "augmented views of a training image that its key is the mean of"),
                "TEMPLATES": templates(),
                "FEATURES": Option(None, "Q; None = released, in proportion to the width", low=1, kind=int),
                "SIMILARITY": Option(None, "weight λ of the similarity; None = released", low=0, high=1, kind=float),
                "INIT_ALPHA": Option(None, f"{start}; None = released", above=0, kind=float),
                "INIT_BETA": Option(1.0, start, above=0),
                "INIT_GAMMA": weight(0.1, "before the search"),
                "SELECT": Option("val", "images that alpha, beta and gamma are searched on", ("val", "none")),
                "SEARCH_SCALE": Option(
                    (), "ends of beta, alpha, gamma; empty = released", above=0.1, length=(0, 3), kind=float
                ),
                "SEARCH_STEP": Option((200, 20, 20), "steps of beta, alpha and gamma", low=1, length=3, kind=int),
                "PREC": precision(),
            },
        )

    def build_model(self) -> None:
        self.by_steps = self.options.FINETUNE
        super().build_model()

    @property
    def released(self) -> Settings:
        """Released settings of the data set."""
        return SETTINGS.get(self.cfg.DATASET.NAME, Settings())

    def build_learner(self, model, classnames) -> Learner:
        own, features = self.options, self.text_classifier(model, classnames)
        width, chosen = features.shape[1], own.FEATURES
        if chosen is None:
            chosen = round((self.released.trained if own.FINETUNE else self.released.features) * width / WIDTH)
        if chosen > width:
            raise ValueError(f"TRAINER.APE.FEATURES is {chosen}, expected 1 to {width}, the width of the features")
        alpha = self.released.alpha if own.INIT_ALPHA is None else own.INIT_ALPHA
        images = len(self.dm.dataset.train_x)
        return RefinedCache(features, images, alpha, own.INIT_BETA, own.INIT_GAMMA, chosen, own.FINETUNE)

    def build_score(self, learner) -> Score:
        return lambda image, text, scale: learner.logits(image.pooled, scale)

    def chosen_on(self) -> str | None:
        return "val" if self.options.SELECT == "val" and self.has_own_val else None

    def fit(self) -> dict[str, float]:
        """Fill the cache, choose features, and search."""
        own, learner = self.options, self.model.learner
        assert isinstance(learner, RefinedCache)
        learner.fill(*support_features(self, own.AUGMENT_EPOCH))
        released = TRAINED_SIMILARITY if own.FINETUNE else self.released.similarity
        learner.refine(released if own.SIMILARITY is None else own.SIMILARITY, text_only=own.FINETUNE)
        return {} if own.FINETUNE else self.search()

    def search(self) -> dict[str, float]:
        """Set alpha, beta and gamma to what is best on the validation images; the three, and that accuracy."""
        learner, own, found = self.model.learner, self.options, {}
        assert isinstance(learner, RefinedCache)
        if self.chosen_on():
            feature, label = self.frozen_features(self.val_loader)
            ends, scale = own.SEARCH_SCALE or self.released.ends, self.model.clip.logit_scale.exp()
            found["val_accuracy"] = 100 * learner.search(feature, label, scale, ends, own.SEARCH_STEP) / len(label)
        elif own.SELECT == "val":
            logger.warning("there are no separate validation images: alpha, beta and gamma are not searched")
        return {name: float(getattr(learner, name)) for name in ("alpha", "beta", "gamma")} | found

    def before_train(self) -> None:
        super().before_train()
        if self.by_steps and self.start_epoch == 0:
            self.fit()

    def after_epoch(self) -> None:
        if self.by_steps and (self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val"):
            self.search()
        super().after_epoch()

    def adapt_state_dict(self, name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The file says how many keys there are: an evaluation need not read the training set of the cache."""
        learner: Any = self.model.learner
        if "keys" in state_dict and state_dict["keys"].dim() == 2:
            learner.resize(len(state_dict["keys"]))
        return state_dict
