"""CLAP: a linear probe that starts at the text features and is held there class by class.

Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Encoded
from trainers.base import PromptTrainer, template_features
from trainers.parts.descriptions import description_features
from trainers.parts.engine import TRAINER_REGISTRY, Option, build_lr_scheduler, build_optimizer, method_options
from trainers.parts.losses import cosine_logits
from trainers.parts.options import count, precision, templates
from trainers.parts.prompts import Learner
from trainers.parts.support import check_every_class, support_features


class Prototypes(Learner):
    """Prototypes (C, E) of the classes, from the text features `start` on, which are not normalised."""

    class_bound = True
    start: Tensor

    def __init__(self, start: Tensor):
        super().__init__()
        self.register_buffer("start", start, persistent=False)
        self.prototypes = nn.Parameter(start.clone())

    def text_features(self) -> Encoded | None:
        return Encoded(self.prototypes, self.prototypes[:, None])

    def distance(self, multiplier: Tensor) -> Tensor:
        """Mean over classes of multiplier (C,) times the squared distance of the prototype from its start."""
        return (multiplier * (self.prototypes - self.start).square().sum(dim=1)).mean()


@TRAINER_REGISTRY.register()
class CLAP(PromptTrainer):
    """Cosine logits with learned prototypes; cross-entropy and the weighted distance from the text features.

    A class is held the tighter, the better zero-shot CLIP knows its training images. The features of augmented views
    are computed once; OPTIM is that of the fit, whose epochs are no epochs of the run.
    """

    node, model_name, by_steps, own_templates = "CLAP", "clap", False, "imagenet7"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "CLAP",
            {
                "CONSTRAINT": Option(
                    "class", "multipliers: class by class, their mean, or none (ZS-LP)", ("class", "mean", "none")
                ),
                "VIEWS": count(20, "augmented views of every training image"),
                "TEMPLATES": templates(),
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        kind = self.options.TEMPLATES
        if kind not in ("descriptions", "both"):
            return Prototypes(template_features(model, classnames, self.templates).mean(dim=0))
        sentences = self.class_sentences(classnames, self.templates if kind == "both" else ())
        return Prototypes(torch.stack([some.mean(dim=0) for some in description_features(model, sentences)]))

    def multipliers(self, feature: Tensor, label: Tensor) -> Tensor:
        """Mean probability (C,) that zero-shot CLIP gives the images of a class for their class."""
        learner = self.model.learner
        assert isinstance(learner, Prototypes)
        if self.options.CONSTRAINT == "none":
            return feature.new_zeros(self.num_classes)
        found = cosine_logits(feature, learner.start, self.model.clip.logit_scale.detach().exp()).softmax(dim=1)
        one_hot = F.one_hot(label, self.num_classes)
        mean = (found * one_hot).sum(dim=0) / one_hot.sum(dim=0)
        return mean if self.options.CONSTRAINT == "class" else mean.mean().expand_as(mean)

    def fit(self) -> dict[str, float]:
        """Fits the prototypes; raises ValueError if a class has no training image."""
        learner, part = self.model.learner, self.cfg.OPTIM
        assert isinstance(learner, Prototypes)
        views, label = support_features(self, self.options.VIEWS)
        check_every_class(self, label)
        images, size = len(label), self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        feature, label = views.flatten(0, 1), label.repeat(len(views))
        multiplier = self.multipliers(feature, label)
        scale, loss, prior = self.model.clip.logit_scale.detach().exp(), feature.new_zeros(()), feature.new_zeros(())
        optim = build_optimizer(learner, part)
        schedule = build_lr_scheduler(optim, part, max(1, images // size))
        order = torch.Generator().manual_seed(max(0, self.cfg.SEED))
        for _ in range(part.MAX_EPOCH):
            rows = torch.randperm(len(label), generator=order).to(label.device)
            for some in rows.split(size)[: max(1, images // size)]:  # as many as of one view
                loss = F.cross_entropy(cosine_logits(feature[some], learner.prototypes, scale), label[some])
                prior = learner.distance(multiplier)
                optim.zero_grad()
                (loss + prior).backward()
                optim.step()
                if getattr(schedule, "by_batch", False):
                    schedule.step()
            if not getattr(schedule, "by_batch", False):
                schedule.step()
        learner.zero_grad()
        return {"ce": float(loss.detach()), "prior": float(prior.detach()), "multiplier": float(multiplier.mean())}
