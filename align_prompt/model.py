"""A model that predicts, rebuilt from what a run left behind, without its data."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import clip
from align_prompt.images import as_pictures, batches, read_pictures, stacked
from align_prompt.prediction import Prediction
from align_prompt.source import Source
from clip.towers.names import is_name
from dassl.data.class_list import ClassList
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.evaluation.calibration import fit_temperature
from trainers.base import PromptedCLIP
from trainers.parts.losses import normalise

DEVICES = ("cpu", "cuda")


class Model:
    """A trained method, or a zero-shot CLIP, with class names that may be set. Made by `align_prompt.load` and `fit`.

    Args:
        source: what it is built from.
        classnames: None = those of training.
        device: "cpu" or "cuda"; None = a GPU if there is one.
        precision: in the place of the method's PREC.

    Attributes:
        temperature: divides the logits before the softmax; 1 unless `calibrate`, a bundle or a run with TEST.CALIBRATE
            says otherwise.
        trainer: the trainer of the method, for what this class does not offer.

    Raises:
        ValueError: the source does not fit the classes or the device.
    """

    def __init__(
        self,
        source: Source,
        classnames: Sequence[str] | None = None,
        device: str | None = None,
        precision: str | None = None,
    ):
        if device not in (None, *DEVICES):
            raise ValueError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError('device is "cuda", but torch finds no GPU')
        self.source, self._cuda, self._precision = source, device != "cpu", precision
        self.temperature = source.temperature
        self._classnames: list[str] = []
        self._build(list(source.classnames) if classnames is None else checked_names(classnames))

    def _build(self, names: list[str]) -> None:
        source = self.source
        cfg = source.cfg.clone()
        cfg.USE_CUDA = self._cuda
        if self._precision is not None:
            cfg.TRAINER[TRAINER_REGISTRY.get(self.method).node].PREC = self._precision
        # A precision of the method may cast the weights of a CLIP; nothing casts those of a zero-shot one.
        backbone = copy.deepcopy(source.backbone) if source.checkpoints else source.backbone
        data = ClassList(cfg, names, source.template, source.long_names, backbone)
        trainer = build_trainer(cfg, data)
        found = getattr(trainer, "backbone_hash", "")
        if self.backbone and source.backbone_hash and source.checkpoints and found not in ("", source.backbone_hash):
            raise ValueError(
                f"{source.origin} was trained on the backbone {cfg.MODEL.BACKBONE.NAME} with weights of hash "
                f"{source.backbone_hash}, but the ones found here have {found}: put the same weights there"
            )
        try:
            trainer.load_checkpoints(source.checkpoints)
        except ValueError as err:
            if names != list(source.classnames):
                raise ValueError(f"{self.method} cannot change its classes: {err}") from err
            raise
        self.trainer, self._classnames, self._ready = trainer, names, False

    def __repr__(self) -> str:
        return f"Model({self.method} on {self.backbone}, {len(self._classnames)} classes, from {self.source.origin})"

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.source.cfg.TRAINER.NAME)

    @property
    def backbone(self) -> str:
        """Name or path of the CLIP."""
        return str(self.source.cfg.MODEL.BACKBONE.NAME)

    @property
    def backbone_title(self) -> str:
        """Name of the CLIP, or the last part of its path."""
        named = self.backbone in clip.available_models() or is_name(self.backbone)
        return self.backbone if named else Path(self.backbone).name

    @property
    def folder(self) -> Path | None:
        """Folder of the run; None for a model that came another way."""
        return self.source.folder

    @property
    def result(self) -> dict[str, Any]:
        """Content of the run's result.json; {} where there is none."""
        return dict(self.source.result)

    @property
    def device(self) -> torch.device:
        """Device the model computes on."""
        return self.trainer.device

    @property
    def classnames(self) -> list[str]:
        """Names of the classes, in the order of the logits. Setting them encodes the new ones.

        Raises:
            ValueError: no names, an empty one, or a method whose learned parameters belong to the classes of training;
                the model stays as it was.
        """
        return list(self._classnames)

    @classnames.setter
    def classnames(self, names: Sequence[str]) -> None:
        names = checked_names(names)
        if names != self._classnames:
            self._build(names)

    @torch.no_grad()
    def encode_classes(self) -> None:
        """Encode the classes, once; done by itself when it is needed."""
        if self._ready:
            return
        if not self._classnames:
            raise ValueError('there are no classes to choose from: set model.classnames = ["cat", "dog"]')
        text = self.source.text
        if text is not None and tuple(self._classnames) == self.source.classnames:
            self.trainer.set_model_mode("eval")
            self.trainer.text = type(text)(*(value.to(self.device) for value in text))
        else:
            self.trainer.before_inference()
        self._ready = True

    def _batches(self, images: Any, batch_size: int | None, workers: int | None) -> Iterator[list[tuple[str, Any]]]:
        cfg = self.trainer.cfg
        size = cfg.DATALOADER.TEST.BATCH_SIZE if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size is {size}, expected at least 1")
        if (transform := self.trainer.dm.tfm_test) is None:
            raise ValueError(f"{self.source.origin} has no preprocessing (INPUT.NO_TRANSFORM): it takes no pictures")
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        return batches(read_pictures(as_pictures(images), transform, tuple(cfg.INPUT.SIZE), workers), size)

    @torch.no_grad()
    def stream(
        self, images: Any, top: int = 5, batch_size: int | None = None, workers: int | None = None
    ) -> Iterator[Prediction]:
        """As `predict`, one picture after the other as they are done; one that cannot be read has an `error`.

        Args:
            images: paths, PIL images, arrays or tensors (see `align_prompt.images.to_tensor`), or one of them.
            top: classes per picture at most.
            batch_size: pictures computed at once; None = that of the run's evaluation.
            workers: threads that read pictures; None = one per core, at most 8.
        """
        if top < 1:
            raise ValueError(f"top is {top}, expected at least 1")
        self.encode_classes()
        for batch in self._batches(images, batch_size, workers):
            image = stacked(batch)
            answers = iter(()) if image is None else self._answers(self._logits(image), top)
            for name, value in batch:
                if isinstance(value, Tensor):
                    yield next(answers)._replace(source=name)
                else:
                    yield Prediction(name, error=str(value) or type(value).__name__)

    def predict(
        self,
        images: Any,
        top: int = 5,
        batch_size: int | None = None,
        workers: int | None = None,
        skip_errors: bool = False,
    ) -> list[Prediction]:
        """Classes of pictures, one `Prediction` each, in their order.

        Args:
            images, top, batch_size, workers: see `stream`.
            skip_errors: a picture that cannot be read has an `error` in its row, instead of ending the call.

        Raises:
            ValueError: a picture cannot be read, or there are no classes.
        """
        rows = []
        for row in self.stream(images, top, batch_size, workers):
            if row.error and not skip_errors:
                raise ValueError(row.error)
            rows.append(row)
        return rows

    def _logits(self, image: Tensor) -> Tensor:
        trainer = self.trainer
        with trainer.test_precision.autocast():
            return trainer.model_inference(image.to(self.device)).float()

    def _answers(self, logits: Tensor, top: int) -> Iterator[Prediction]:
        """Answers of a batch; the order is that of the logits, because probabilities may be equal by rounding."""
        probability = (logits / self.temperature).softmax(dim=1)
        order = logits.argsort(dim=1, descending=True, stable=True)[:, :top]
        chosen = probability.gather(1, order)
        for places, values in zip(order.tolist(), chosen.tolist()):
            best = tuple((self._classnames[place], value) for place, value in zip(places, values))
            yield Prediction("", best[0][0], best[0][1], best)

    @torch.no_grad()
    def logits(self, images: Any, batch_size: int | None = None, workers: int | None = None) -> Tensor:
        """Logits (n, C) of pictures, on the CPU; their softmax at `temperature` is the probabilities.

        Raises:
            ValueError: a picture cannot be read, or there are no classes.
        """
        self.encode_classes()
        parts = [self._logits(image).cpu() for image in self.image_batches(images, batch_size, workers)]
        return torch.cat(parts) if parts else torch.empty(0, len(self._classnames))

    def image_batches(self, images: Any, batch_size: int | None = None, workers: int | None = None) -> Iterator[Tensor]:
        """Preprocessed batches (B, 3, H, W) of pictures, on the CPU.

        Raises:
            ValueError: a picture cannot be read.
        """
        for batch in self._batches(images, batch_size, workers):
            for _, value in batch:
                if isinstance(value, Exception):
                    raise ValueError(str(value)) from value
            image = stacked(batch)
            assert image is not None
            yield image

    @property
    def prompted(self) -> PromptedCLIP:
        """The CLIP with what was learned.

        Raises:
            ValueError: the method has another model.
        """
        model = self.trainer.model
        if not isinstance(model, PromptedCLIP):
            raise ValueError(f"{self.method} has no CLIP with a learner around it, but a {type(model).__name__}")
        return model

    @torch.no_grad()
    def image_features(self, images: Any, batch_size: int | None = None, workers: int | None = None) -> Tensor:
        """L2-normalised features of pictures in the common space, on the CPU.

        Returns:
            (n, E); of a method with M > 1 visual prompts (n, M, E).
        """
        model = self.prompted
        self.trainer.set_model_mode("eval")
        parts = []
        for image in self.image_batches(images, batch_size, workers):
            with self.trainer.test_precision.autocast():
                encoded = model.encode_image(image.to(self.device))
            parts.append(normalise(encoded.pooled).cpu())
        feature = torch.cat(parts) if parts else torch.empty(0, model.clip.visual.output_dim)
        modes = model.learner.vision_modes
        return feature if modes == 1 else feature.unflatten(0, (-1, modes))

    @property
    def text_features(self) -> Tensor:
        """L2-normalised features of the classes, on the CPU: (C, E); of a method with N > 1 textual prompts (C, N, E).

        Raises:
            ValueError: the text depends on the image.
        """
        model = self.prompted
        if model.learner.conditional:
            raise ValueError(f"the text of {self.method} depends on the picture: it has no features without one")
        self.encode_classes()
        feature = normalise(self.trainer.text.pooled).cpu()
        modes = model.learner.text_modes
        return feature if modes == 1 else feature.unflatten(0, (-1, modes))

    def calibrate(self, images: Any, labels: Sequence[str]) -> float:
        """Set `temperature` to what makes labelled pictures most probable (Guo et al., 2017), and return it.

        Args:
            images: pictures that were not trained on.
            labels: the class name of each.

        Raises:
            ValueError: a label is not a class, or their number differs from that of the pictures.
        """
        places = {name: place for place, name in enumerate(self._classnames)}
        unknown = [label for label in labels if label not in places]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the {len(places)} classes of the model")
        logits = self.logits(images)
        if len(logits) != len(labels) or not len(labels):
            raise ValueError(f"there are {len(logits)} pictures and {len(labels)} labels, expected one label for each")
        self.temperature = fit_temperature(logits, torch.tensor([places[label] for label in labels]))
        return self.temperature


def checked_names(names: Sequence[str]) -> list[str]:
    """Class names as a list.

    Raises:
        ValueError: one text, no names, or a name that is empty or no text.
    """
    if isinstance(names, str):
        raise ValueError(f'class names are {names!r}, expected several, such as ["cat", "dog"]')
    names = list(names)
    if not names:
        raise ValueError('there are no classes to choose from, expected names such as ["cat", "dog"]')
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the class name {name!r} is empty or no text")
    return names
