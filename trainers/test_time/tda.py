"""TDA: two caches of the test images seen so far, for and against classes (Karmanov et al., CVPR 2024, Section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, Option, build_data_loader, loader_seed, method_options
from trainers.parts.losses import normalise
from trainers.parts.options import count, precision, share, templates, weight
from trainers.parts.prompts import FixedText, Learner
from trainers.parts.views import Queue, confident, entropy_of_mean

RISING = (lambda pair: len(pair) == 2 and 0 <= pair[0] < pair[1] < math.inf, "two numbers, the first below the second")


@TRAINER_REGISTRY.register()
class TDA(PromptTrainer):
    """logit + alpha exp(-beta (1 - f F)) V of images taken for sure, minus the same of images with doubtful classes.

    An evaluation starts with empty caches and goes through the images one by one; each is put in before it is
    predicted. Processes have caches of their own.
    """

    node, by_steps, adapts, own_templates = "TDA", False, True, "imagenet7"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "TDA",
            {
                "POSITIVE": count(3, "images of a class in the cache of sure images; 0: without it", low=0),
                "ALPHA": weight(2.0, "its weight"),
                "BETA": Option(5.0, "its sharpness", above=0),
                "NEGATIVE": count(2, "images of a class in the cache of doubtful images; 0: without it", low=0),
                "NEGATIVE_ALPHA": weight(0.117, "its weight"),
                "NEGATIVE_BETA": Option(1.0, "its sharpness", above=0),
                "ENTROPY": Option((0.2, 0.5), "bounds of the entropy of doubtful images over log2 C", rule=RISING),
                "MASK": Option((0.03, 1.0), "bounds of the probability of classes they speak against", rule=RISING),
                "SELECT": share(0.1, "of the views (TEST.VIEWS), those with the lowest entropy; at least one"),
                "ORDER": Option("random", "of the images: by the seed, as released; or given", ("random", "given")),
                "TEMPLATES": templates(),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        return FixedText(self.text_classifier(model, classnames))

    def evaluation_batches(self, loader: Any) -> Any:
        if self.options.ORDER == "given":
            return loader
        wrapper, seed = loader.dataset.dataset, max(0, self.cfg.SEED)
        order = torch.randperm(len(wrapper.data_source), generator=torch.Generator().manual_seed(seed))
        return build_data_loader(
            self.cfg,
            data_source=[wrapper.data_source[i] for i in order.tolist()],
            batch_size=loader.batch_size,
            tfm=wrapper.transform,
            is_train=False,
            seed=loader_seed(self.cfg.SEED, 2),
        )

    def before_inference(self) -> None:
        super().before_inference()
        features: Any = self.model.learner.get_buffer("features")
        self.queues = [
            Queue(len(features), size, features.shape[1], features.device)
            for size in (self.options.POSITIVE, self.options.NEGATIVE)
        ]

    @torch.no_grad()
    def adapt(self, views: Tensor) -> Tensor:
        own, (positive, negative) = self.options, self.queues
        image, scale = self.model.encode_image(views), self.model.clip.logit_scale.exp()
        found = self.model.score(image, self.model.encode_text(), scale)  # the classes are stored, not encoded
        chosen = confident(found, own.SELECT)
        logits, feature = found[chosen].mean(dim=0), normalise(image.pooled)[chosen].mean(dim=0)
        chance, label, doubt = found[chosen].softmax(dim=1).mean(dim=0), logits.argmax(), entropy_of_mean(found[chosen])
        if own.POSITIVE:
            own_class = torch.arange(len(logits), device=label.device) == label
            positive.put(label, feature, own_class.float(), doubt, own_class.any())
            logits = logits + own.ALPHA * positive.logits(feature, own.BETA)
        if own.NEGATIVE:
            part, (low, high) = doubt / math.log2(len(logits)), own.ENTROPY
            mask = (chance > own.MASK[0]) & (chance < own.MASK[1])
            negative.put(label, feature, mask.float(), doubt, (part > low) & (part < high))
            logits = logits - own.NEGATIVE_ALPHA * negative.logits(feature, own.NEGATIVE_BETA)
        return logits
