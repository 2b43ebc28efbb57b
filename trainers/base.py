"""Base of all trainers: loading CLIP, freezing, precision, the step, text caching and checkpoints.

CLIPTrainer -> PromptTrainer -> method is the whole depth. A few-shot method says what it learns (`build_learner`), how
an image is scored against the classes (`build_score`) and which loss terms it adds (`extra_losses`); nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip import CLIP, Encoded
from clip.adapters import kind_of
from trainers.parts import engine
from trainers.parts.descriptions import description_ensemble, descriptions_hash, read_descriptions
from trainers.parts.engine import CfgNode, TrainerX
from trainers.parts.feature_cache import FeatureBatches, FeatureFile, description, state_hash, why_not
from trainers.parts.inputs import check_input, input_options
from trainers.parts.memory import MemoryPlan
from trainers.parts.options import WithOptions
from trainers.parts.prompt_lengths import prompt_problems
from trainers.parts.prompted_clip import (
    Output,
    PromptedCLIP,
    Score,
    cosine_score,
    ensemble_features,
    template_features,
)
from trainers.parts.prompts import Learner, readable
from trainers.parts.templates import template_for, template_set

logger = logging.getLogger(__name__)

__all__ = [
    "CLIPTrainer",
    "Output",
    "PromptTrainer",
    "PromptedCLIP",
    "Score",
    "cosine_score",
    "ensemble_features",
    "freeze_all_but",
    "template_features",
]


def freeze_all_but(model: nn.Module, learned: Iterable[nn.Module]) -> None:
    """Only the parameters of the modules in `learned` get gradients; the rest of `model` is frozen.

    Raises:
        ValueError: a learned module is not part of the model.
    """
    chosen = {id(p) for module in learned for p in module.parameters()}
    everything = {id(p) for p in model.parameters()}
    if not chosen <= everything:
        raise ValueError("a learned module is not part of the model: learned + frozen must be all parameters")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


class CLIPTrainer(WithOptions, TrainerX):
    """Base of every trainer: one CLIP, one precision switch, one optimisation step, one evaluation.

    `node` is the name of the method's config node below TRAINER. Subclasses set `model` in `build_model` and return
    named scalar loss terms from `losses(batch)`; the sum is minimised and every term is logged.
    """

    input_defaults = input_options(clip.Input())  # without a backbone's name
    model: PromptedCLIP
    text: Encoded | None = None  # the encoded classes during an evaluation
    batch: Any = None  # of the last training step
    own_templates = "dataset"  # the method's option TEMPLATES, where it has one, if that is ""
    local_features = False  # the score reads the tokens of encoded images, not only their pooled features
    cuts_phrases = False  # N_CTX vectors start as the first tokens of CTX_INIT; False: all its tokens become vectors
    adapts = False  # at test time every image is given to `adapt`, alone and with gradients

    @classmethod
    def config_problems(cls, cfg: CfgNode) -> list[str]:
        """Relations of options that do not hold, in words; of values that are right by themselves.

        Methods add those between their options: the list of `super().config_problems(cfg)` and more.
        """
        if "MODEL" not in cfg:
            return []  # options of the method alone
        found = prompt_problems(cfg, cls.defaults(), cls.cuts_phrases)
        if (views := cfg.TEST.VIEWS) and not cls.adapts:
            found.append(f"TEST.VIEWS is {views}, but {cls.__name__} looks at a test image once: set it 0")
        return found

    @property
    def template(self) -> str:
        return template_for(self.cfg.DATASET.NAME, self.cfg.INPUT.TEMPLATE, getattr(self.dm.dataset, "template", None))

    @cached_property
    def descriptions(self) -> list[list[str]]:
        """Sentences about every class, in the order of the classes, from the files of DATASET.DESCRIPTIONS.

        Raises:
            ValueError: no file is given, or one does not fit the classes.
        """
        data = self.cfg.DATASET
        if not data.DESCRIPTIONS:
            raise ValueError(
                f"{type(self).__name__} reads sentences about the classes: set DATASET.DESCRIPTIONS to JSON files, "
                "{class name: [sentence, ...]}"
            )
        return read_descriptions(data.DESCRIPTIONS, self.dm.dataset.classnames, data.SUBSAMPLE_CLASSES != "all")

    @property
    def templates(self) -> tuple[str, ...]:
        """Sentences of the text classifier, as the method's option TEMPLATES says if there is one."""
        kind = self.options.get("TEMPLATES") or self.own_templates
        kind = {"descriptions": "dataset", "both": self.own_templates}.get(kind, kind)
        return template_set(kind, self.cfg.DATASET.NAME, self.template)

    def class_sentences(self, classnames: list[str], templates: tuple[str, ...] = ()) -> list[list[str]]:
        """Sentences of every class: those of some templates, then the descriptions."""
        own = [[template.format(readable(name)) for template in templates] for name in classnames]
        return [[*some, *more] for some, more in zip(own, self.descriptions)]

    def text_classifier(self, model: CLIP, classnames: list[str]) -> Tensor:
        """Classifier (C, E) of the option TEMPLATES: the mean of each class's normalised features, normalised again.

        descriptions: of the sentences about the class; both: of these and of the templates.
        """
        kind = self.options.TEMPLATES
        if kind not in ("descriptions", "both"):
            return ensemble_features(model, classnames, self.templates)
        return description_ensemble(model, self.class_sentences(classnames, self.templates if kind == "both" else ()))

    def teacher_template(self, own: Mapping[str, str]) -> str:
        """Template of a text teacher: INPUT.TEMPLATE if given, else the method's `own` by data set, else `template`."""
        if self.cfg.INPUT.TEMPLATE:
            return self.template
        return own.get(self.cfg.DATASET.NAME, self.template)

    def load_clip(self) -> CLIP:
        """The backbone of MODEL.BACKBONE.NAME in fp32, in evaluation mode, on the CPU.

        Raises:
            ValueError: image size, interpolation or pixel statistics of the config are not those of the checkpoint; or
                the method compares patches and the image tower has none.
        """
        model, transform = getattr(self.dm, "backbone", None), None
        if model is None:
            model, transform = clip.load(self.cfg.MODEL.BACKBONE.NAME, device="cpu")
        check_input(self.cfg, model.visual.input_resolution, transform)
        if self.local_features and not getattr(model.visual, "has_tokens", True):
            raise ValueError(
                f"{type(self).__name__} compares patches, but the image tower of {self.cfg.MODEL.BACKBONE.NAME} is a "
                f"{kind_of(model.visual)}: choose a backbone with a vision transformer"
            )
        self.backbone_hash = state_hash(model)
        return model

    def register_learned(self, name: str, learned: nn.Module, params=None) -> None:
        """Optimiser and schedule over a module's parameters, registered under `name` for stepping and checkpoints."""
        self.optim = engine.build_optimizer(learned if params is None else params, self.cfg.OPTIM)
        self.sched = engine.build_lr_scheduler(self.optim, self.cfg.OPTIM, max(1, len(self.train_loader_x)))
        self.register_model(name, learned, self.optim, self.sched)

    def losses(self, batch) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no loss: it is evaluated only, use --eval-only")

    def extra_metrics(self) -> dict[str, Tensor]:
        """Scalars of the last step that are logged but not minimised."""
        return {}

    def gradient_projection(self) -> engine.GradientProjection | None:
        """Auxiliary loss whose gradient is projected onto the main one (ProGrad)."""
        return None

    def forward_backward(self, batch) -> dict[str, float]:
        self.text, self.batch = None, batch
        with self.precision.autocast():
            terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        projection, metrics = self.gradient_projection(), self.extra_metrics()
        shown = self.model_backward_and_update(loss, terms=terms, projection=projection, metrics=metrics)
        if (self.batch_idx + 1) == self.num_batches or getattr(self.sched, "by_batch", False):
            self.update_lr()
        return shown

    def similarity_scale(self) -> float:
        scale = getattr(getattr(self.model, "clip", self.model), "logit_scale", None)
        return 1.0 if scale is None else float(scale.exp())

    @torch.no_grad()
    def before_inference(self) -> None:
        """Classes are encoded once, not once per batch, unless the text depends on the image."""
        super().before_inference()
        if not self.model.learner.conditional:
            with self.test_precision.autocast():
                self.text = self.model.encode_text()

    def test(self, split=None):
        result = super().test(split)
        self.text = None
        return result

    def model_inference(self, image: Tensor | Encoded) -> Tensor:
        with self.test_precision.autocast():
            if self.adapts:
                assert isinstance(image, Tensor)  # encoded images are kept of no method that adapts
                views = image if image.dim() == 5 else image[:, None]  # (B, V, 3, H, W)
                with torch.enable_grad():
                    return torch.stack([self.adapt(one).detach() for one in views])
            if isinstance(image, Encoded):
                return self.model.compare(image, self.text).logits
            return self.model(image, self.text).logits

    def adapt(self, views: Tensor) -> Tensor:
        """Logits (C,) of one test image, of a method that `adapts`.

        Runs in `test_precision` with gradients allowed; `text` holds the encoded classes. What should not last for the
        next image, such as a learner that took a step, is put back here; `before_inference` starts an evaluation.

        Args:
            views: (1 + TEST.VIEWS, 3, H, W), the test image as always and then random training transforms of it.
        """
        raise NotImplementedError(f"{type(self).__name__} adapts to images and has no adapt()")

    def views_of(self, batch) -> tuple[Tensor, ...]:
        """Views (B, 3, H, W) of the images of a batch, of K_TRANSFORMS and further ones; `losses` encodes the first."""
        found = batch["img"] if isinstance(batch["img"], (list, tuple)) else [batch["img"]]
        for number in range(2, len(batch)):
            if f"img{number}" in batch:
                found = [*found, batch[f"img{number}"]]
        return tuple(view.to(self.device, non_blocking=True) for view in found)

    def fingerprint_extra(self) -> dict[str, str]:
        text = " | ".join(self.templates)
        if (kind := self.options.get("TEMPLATES")) in ("descriptions", "both"):
            text = f"{f'{text} and ' if kind == 'both' else ''}descriptions {descriptions_hash(self.descriptions)}"
        return {"template": text, "backbone": self.backbone_hash}


class PromptTrainer(CLIPTrainer):
    """Base of the few-shot methods: a frozen CLIP and a learner."""

    model_name = "prompt_learner"
    by_steps = True  # False: what is learned is made in one go by `fit`, without epochs of gradient steps
    other_classes = False  # what was loaded had been learned on other classes than those at hand

    def build_learner(self, model: CLIP, classnames: list[str]) -> Learner:
        raise NotImplementedError(f"{type(self).__name__} must say what it learns")

    def build_score(self, learner: Learner) -> Score:
        """Score of images against classes; cosine similarity unless overridden."""
        return cosine_score

    def extra_losses(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        """Loss terms besides cross-entropy."""
        return {}

    @property
    def class_bound(self) -> bool:
        return self.model.learner.class_bound

    def build_model(self) -> None:
        backbone = self.load_clip().to(self.device)
        learner = self.build_learner(backbone, self.dm.dataset.classnames).float()
        clip.convert_weights(backbone, self.precision.dtype, learner.parameters())
        self.model = PromptedCLIP(backbone, learner, self.build_score(learner)).to(self.device)
        chosen = self.cfg.TRAIN
        self.model.memory = MemoryPlan(chosen.MEMORY_BUDGET, chosen.TEXT_CHUNK, chosen.IMAGE_CHUNK)
        freeze_all_but(self.model, [learner])
        if self.cfg.TRAIN.INIT_FROM and learner.state_dict():  # skip methods without parameters
            self.start_from(self.cfg.TRAIN.INIT_FROM)
        self.parallel_model = self.parallel(self.model)
        if self.by_steps and engine.count_num_param(learner):
            self.register_learned(self.model_name, learner)
        elif learner.state_dict() and type(self).fit is not PromptTrainer.fit:
            self.register_model(self.model_name, learner)
            self.max_epoch = 1  # `fit` is the only epoch, so that checkpoints and resuming are as everywhere
        else:
            self.max_epoch = 0  # nothing to train: the run is its evaluation
        logger.info(
            "%s on %s: %s learned of %s parameters",
            type(self).__name__,
            self.cfg.MODEL.BACKBONE.NAME,
            f"{engine.count_num_param(learner):,}",
            f"{engine.count_num_param(self.model):,}",
        )

    def start_from(self, directory: str) -> None:
        """Give the learner what another run of the method has learned at its end (TRAIN.INIT_FROM).

        Raises:
            FileNotFoundError: that folder has no checkpoint.
            ValueError: the checkpoint does not fit the learner or its classes.
        """
        path = engine.checkpoint_file(directory, self.model_name, engine.last_epoch(directory))
        try:
            weights = self.for_classes(path, engine.read_checkpoint(path))
        except ValueError as err:
            raise ValueError(f"{type(self).__name__} cannot start from this run (TRAIN.INIT_FROM): {err}") from err
        weights = self.adapt_state_dict(self.model_name, weights)
        engine.check_weights(path, self.model.learner, weights)
        self.model.learner.load_state_dict(weights)
        logger.info("Start from %s", path)

    def load_checkpoints(self, found) -> None:
        super().load_checkpoints(found)
        names = self.classnames()
        self.other_classes = any(list(content.get("classnames") or names) != names for _, content in found.values())

    def fit(self) -> dict[str, float]:
        """Fill the learner from the training data; returns figures for the record. For methods not `by_steps`."""
        raise NotImplementedError(f"{type(self).__name__} does not learn by steps and has no fit()")

    def run_epoch(self) -> None:
        if self.by_steps:
            super().run_epoch()
            return
        start, images = time.perf_counter(), len(self.dm.dataset.train_x)
        figures = self.fit()
        self.text = None
        self.train_seconds += (seconds := time.perf_counter() - start)
        self.train_images += images
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("%s fitted on %d images in %.1f s: %s", type(self).__name__, images, seconds, shown)
        if engine.distributed.is_main_process():
            record = {"kind": "epoch", "epoch": self.epoch + 1, "seconds": round(seconds, 3), "images": images}
            self.metrics.write({**record, **figures})

    @torch.no_grad()
    def frozen_features(self, loader) -> tuple[Tensor, Tensor]:
        """Features of plain CLIP for all images of an evaluation loader, in its order, whole in every process.

        Returns:
            (K, E) pooled, not normalised, fp32, and (K,) labels, on the device.
        """
        parts = []
        for batch in self.feature_batches(loader, self.model.clip.encode_image):
            parts.append((batch["index"], batch["img"].pooled.float().cpu(), batch["label"]))
        mine = tuple(torch.cat(column) for column in zip(*parts)) if parts else None
        shares = [share for share in engine.distributed.all_gather_object(mine) if share is not None]
        index, feature, label = (torch.cat(column) for column in zip(*shares))
        order = index.argsort()
        return feature[order].to(self.device), label[order].to(self.device)

    def evaluation_batches(self, loader: Any) -> Any:
        """With TEST.FEATURE_CACHE encoded images in the place of images, if the method leaves the tower as it is."""
        if not self.cfg.TEST.FEATURE_CACHE:
            return loader
        if reason := self.changes_images() or why_not(loader, self.dm.tfm_test):
            logger.info("Image features of this evaluation are not cached: %s", reason)
            return loader
        return self.feature_batches(loader, self.model.encode_image, self.local_features)

    def changes_images(self) -> str:
        """Reason why the method's image tower differs from plain CLIP's; "" if it does not."""
        if self.adapts:
            return "the method adapts to every image"
        if self.model.learner.vision_prompts() is not None:
            return "the method prompts the image tower"
        if any(parameter.requires_grad for parameter in self.model.clip.visual.parameters()):
            return "the method trains the image tower"
        own = [
            f"{kind.__name__}.{name}"
            for kind, base, names in (
                (type(self), PromptTrainer, ("parse_batch_test", "model_inference")),
                (type(self.model), PromptedCLIP, ("forward", "encode_image", "compare")),
            )
            for name in names
            if getattr(kind, name) is not getattr(base, name)
        ]
        return f"the method has its own {', '.join(own)}" if own else ""

    def feature_batches(self, loader: Any, encode: Callable[[Tensor], Encoded], tokens: bool = False) -> FeatureBatches:
        """Batches of an evaluation loader with `encode`d images, kept in a file with TEST.FEATURE_CACHE.

        Args:
            encode: computes what plain CLIP computes.
            tokens: the local features are wanted too.
        """

        def encoded(image: Tensor) -> Encoded:
            with self.precision.autocast():
                return encode(image)

        file = None
        if self.cfg.TEST.FEATURE_CACHE and not why_not(loader, self.dm.tfm_test):
            root = getattr(self.dm.dataset, "items_root", "")
            how = f"{self.precision.name} {self.device.type}"
            key = description(loader, root, tokens, self.model.clip.visual, how)
            file = FeatureFile(self.cfg.DATASET.CACHE_DIR, key)
        return FeatureBatches(loader, encoded, file, self.device, tokens)

    def losses(self, batch) -> dict[str, Tensor]:
        image, label = self.parse_batch_train(batch)
        output = self.parallel_model(image)
        return {"ce": F.cross_entropy(output.logits, label), **self.extra_losses(output, label)}

    def parse_batch_train(self, batch) -> tuple[Tensor, Tensor]:
        return self.views_of(batch)[0], batch["label"].to(self.device, non_blocking=True)

    def parse_batch_test(self, batch) -> tuple[Any, Tensor]:
        """Images, or what they were encoded to, and labels; all views (B, V, 3, H, W) for a method that adapts."""
        if self.adapts:
            return torch.stack(self.views_of(batch), dim=1), batch["label"].to(self.device, non_blocking=True)
        if isinstance(batch["img"], Encoded):
            return batch["img"], batch["label"].to(self.device, non_blocking=True)
        return super().parse_batch_test(batch)
