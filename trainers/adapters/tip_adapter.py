"""Tip-Adapter: a cache of training features beside zero-shot CLIP; Tip-Adapter-F fine-tunes its keys.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, Section 3.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from yacs.config import CfgNode

from clip import Encoded
from trainers.base import PromptTrainer, Score
from trainers.parts.cache_model import Cache
from trainers.parts.engine import TRAINER_REGISTRY, Option, build_optimizer, method_options
from trainers.parts.options import count, precision, templates
from trainers.parts.prompts import Learner
from trainers.parts.support import support_features

logger = logging.getLogger(__name__)

SELECT = ("val", "released", "none")


class Start(NamedTuple):
    """Released settings of a data set: alpha before the search, upper ends of beta and alpha in the search."""

    alpha: float = 1.17
    beta_end: float = 7.0
    alpha_end: float = 3.0


STARTS = {
    "Caltech101": Start(3.0, 12.0, 5.0),
    "SUN397": Start(1.17, 12.0, 10.0),
    "Food101": Start(1.17, 10.0, 10.0),
    "StanfordCars": Start(3.0, 20.0, 10.0),
    "DescribableTextures": Start(2.0, 13.0, 13.0),
    "EuroSAT": Start(2.0, 12.0, 10.0),
    "FGVCAircraft": Start(5.0, 30.0, 30.0),
    "OxfordFlowers": Start(10.0, 50.0, 50.0),
    "UCF101": Start(3.0, 7.0, 3.0),
}


@TRAINER_REGISTRY.register()
class TipAdapter(PromptTrainer):
    """logit = scale * f W + alpha * exp(-beta * (1 - f F)) V, with keys F and one-hot values V of the training images.

    Without training the cache is all that is made; with FINETUNE (Tip-Adapter-F) its keys learn by cross-entropy. In
    both cases alpha and beta are then searched on the validation images. Features of training, validation and (in
    `released`) test images for cache and search are computed once; images of fine-tuning are augmented anew.
    """

    node = "TIP_ADAPTER"
    model_name = "tip_adapter"
    own_templates = "imagenet7"
    by_steps = False
    best: tuple[float, Tensor] | None = None  # `released`: accuracy on the test images and the keys that gave it

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "TIP_ADAPTER",
            {
                "FINETUNE": Option(False, "Tip-Adapter-F"),
                "AUGMENT_EPOCH": count(10, "augmented views of a training image that its key is the mean of"),
                "TEMPLATES": templates(),
                "SCALE": Option(
                    None, "s, of the zero-shot logits; None = the backbone's own; released: 100", above=0, kind=float
                ),
                "INIT_ALPHA": Option(
                    None,
                    "before the search and in fine-tuning; None = the released value",
                    above=0,
                    kind=float,
                ),
                "INIT_BETA": Option(1.0, "before the search and in fine-tuning", above=0),
                "SELECT": Option("val", "what alpha and beta are searched on, see below", choices=SELECT),
                "SEARCH_SCALE": Option(
                    (),
                    "upper ends of beta and alpha; empty = released values of the data set",
                    above=0.1,
                    length=(0, 2),
                    kind=float,
                ),
                "SEARCH_STEP": Option((200, 20), "steps of beta and alpha", low=1, length=2, kind=int),
                "STEP_SCHEDULE": Option(
                    True, "fine-tuning: cosine to 0 by step, without warm-up; False = the schedule of OPTIM"
                ),
                "PREC": precision(),
            },
        )

    @classmethod
    def config_problems(cls, cfg) -> list[str]:
        found, options = super().config_problems(cfg), cfg.TRAINER.TIP_ADAPTER
        if options.FINETUNE and options.SELECT == "released" and cfg.TEST.FINAL_MODEL == "best_val":
            found.append(
                "TRAINER.TIP_ADAPTER.SELECT released chooses the epoch on the test images, "
                "so TEST.FINAL_MODEL must be last_step"
            )
        return found

    def build_model(self) -> None:
        self.by_steps = self.options.FINETUNE
        self.known_features: dict[str, tuple[Tensor, Tensor]] = {}
        super().build_model()
        if self.chosen_on() == "test":
            logger.warning(
                "TRAINER.TIP_ADAPTER.SELECT released chooses on the test images: the accuracy is too high, "
                "use it only to repeat published numbers"
            )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return Cache(
            self.text_classifier(model, classnames),
            images=len(self.dm.dataset.train_x),
            alpha=self.released.alpha if options.INIT_ALPHA is None else options.INIT_ALPHA,
            beta=options.INIT_BETA,
            learned=options.FINETUNE,
        )

    def build_score(self, learner) -> Score:
        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            return learner.logits(image.pooled, self.scale(scale))

        return score

    @property
    def released(self) -> Start:
        """Released settings of the data set."""
        return STARTS.get(self.cfg.DATASET.NAME, Start())

    def scale(self, own: Tensor) -> Tensor | float:
        """Weight of the zero-shot logits; `own` is the backbone's."""
        return own if self.options.SCALE is None else self.options.SCALE

    def search_split(self) -> str | None:
        """Split of the search, None for no search."""
        select = self.options.SELECT
        if select == "none":
            return None
        if self.has_own_val and not (select == "released" and self.cfg.DATASET.NAME == "ImageNet"):
            return "val"
        return "test" if select == "released" else None

    def chosen_on(self) -> str | None:
        return "test" if self.options.SELECT == "released" and self.options.FINETUNE else self.search_split()

    def fit(self) -> dict[str, float]:
        self.fill_cache()
        return self.search()

    def fill_cache(self) -> None:
        """Keys: normalised mean over the augmented views of each training image."""
        views = self.options.AUGMENT_EPOCH
        feature, label = support_features(self, views)
        learner: Any = self.model.learner
        learner.fill(feature, label)
        logger.info("Cache of %d keys from %d views each", len(label), views)

    def split_features(self, split: str) -> tuple[Tensor, Tensor]:
        """Features and labels of the val or test images, computed at the first call."""
        if split not in self.known_features:
            loader = self.val_loader if split == "val" else self.test_loader
            self.known_features[split] = self.frozen_features(loader)
        return self.known_features[split]

    def search(self) -> dict[str, float]:
        """Set alpha and beta to what is best on the images of the search; both, and that accuracy."""
        learner: Any = self.model.learner
        split = self.search_split()
        if split is None:
            if self.options.SELECT != "none":
                logger.warning("there are no separate validation images: alpha and beta are not searched")
            return {"alpha": float(learner.alpha), "beta": float(learner.beta)}
        feature, label = self.split_features(split)
        scale = self.scale(self.model.clip.logit_scale.exp())
        ends = self.options.SEARCH_SCALE or (self.released.beta_end, self.released.alpha_end)
        accuracy = 100 * learner.search(feature, label, scale, ends, self.options.SEARCH_STEP) / len(label)
        logger.info("alpha %.4g, beta %.4g: %.2f %% on %s", learner.alpha, learner.beta, accuracy, split)
        return {"alpha": float(learner.alpha), "beta": float(learner.beta), f"{split}_accuracy": accuracy}

    # fine-tuning

    def register_learned(self, name: str, learned: nn.Module, params=None) -> None:
        if not self.options.STEP_SCHEDULE:
            super().register_learned(name, learned, params)
            return
        optim = self.cfg.OPTIM
        if optim.WARMUP_EPOCH > 0:
            raise ValueError(
                f"OPTIM.WARMUP_EPOCH is {optim.WARMUP_EPOCH}, but the released schedule has no warm-up: set it 0, or "
                "TRAINER.TIP_ADAPTER.STEP_SCHEDULE False"
            )
        self.optim = build_optimizer(learned if params is None else params, optim)
        self.sched = CosineAnnealingLR(self.optim, optim.MAX_EPOCH * len(self.train_loader_x))
        self.register_model(name, learned, self.optim, self.sched)

    def before_train(self) -> None:
        super().before_train()
        if self.by_steps and self.start_epoch == 0:
            self.fill_cache()

    def forward_backward(self, batch) -> dict[str, float]:
        shown = super().forward_backward(batch)
        if self.options.STEP_SCHEDULE and self.batch_idx + 1 < self.num_batches:
            self.update_lr()
        return shown

    def after_epoch(self) -> None:
        if self.by_steps:
            released, last = self.options.SELECT == "released", self.epoch + 1 == self.max_epoch
            if released:
                self.keep_best_on_test(last)
            if last or self.cfg.TEST.FINAL_MODEL == "best_val":
                self.search()
            if released and last:
                self.keep_better_on_test()
        super().after_epoch()

    def test_accuracy(self, alpha: float | Tensor, beta: float | Tensor) -> float:
        feature, label = self.split_features("test")
        pair = (torch.as_tensor(value, device=self.device).reshape(1) for value in (alpha, beta))
        scale = self.scale(self.model.clip.logit_scale.exp())
        learner: Any = self.model.learner
        return int(learner.correct(feature, label, scale, *pair)) / len(label)

    @torch.no_grad()
    def keep_best_on_test(self, last: bool) -> None:
        """Remember the keys of the first best epoch on the test images; after the last epoch, go back to them."""
        learner: Any = self.model.learner
        keys = learner.keys
        accuracy = self.test_accuracy(*learner.start)
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, keys.detach().clone())
        if last:
            keys.copy_(self.best[1])

    def keep_better_on_test(self) -> None:
        """Undo a search that has made the test accuracy lower."""
        learner: Any = self.model.learner
        if self.test_accuracy(learner.alpha, learner.beta) < self.test_accuracy(*learner.start):
            for value, start in zip((learner.alpha, learner.beta), learner.start):
                value.fill_(start)

    def extra_state(self) -> dict[str, Any]:
        return {} if self.best is None else {"best_accuracy": self.best[0], "best_keys": self.best[1].cpu()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if state:
            self.best = (state["best_accuracy"], state["best_keys"].to(self.device))

    def adapt_state_dict(self, name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The file says how many keys there are: an evaluation need not read the training set of the cache."""
        if "keys" in state_dict and state_dict["keys"].dim() == 2:
            learner: Any = self.model.learner
            learner.resize(len(state_dict["keys"]))
        return state_dict
