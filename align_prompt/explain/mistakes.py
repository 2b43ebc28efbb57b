"""A test set as a whole: confusion, calibration, the worst mistakes, features in two dimensions."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import datasets  # noqa: F401 - registers the data sets
from align_prompt.model import Model
from clip.adapters import without_adapters
from dassl.data.datasets import build_dataset
from dassl.evaluation.calibration import calibration_error
from trainers.parts.losses import normalise

MOST_POINTS = 2000  # of t-SNE and UMAP
SPECTRAL = 10  # pictures that UMAP's spectral start needs more than
PROJECTIONS = {"tsne": "t-SNE", "umap": "UMAP"}


class Labeled(NamedTuple):
    """Paths and class numbers of pictures."""

    paths: list[str]
    labels: Tensor


class Outcome(NamedTuple):
    """Predictions (n,) of a test set, their probabilities, and the labels."""

    paths: list[str]
    labels: Tensor
    predicted: Tensor
    probability: Tensor

    @property
    def correct(self) -> Tensor:
        """(n,) bool."""
        return self.labels == self.predicted

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return float(self.correct.double().mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in [0, 1]."""
        return calibration_error(self.probability, self.correct)


def own_test_set(model: Model, root: str) -> Labeled:
    """The test set of a run, from the data sets below `root`.

    Raises:
        ValueError: the model is not of a run, its classes were changed, or the data are not those of the run.
    """
    if not model.source.classnames:
        raise ValueError(f"{model.source.origin} is a zero-shot CLIP without a run: it has no test set of its own")
    cfg = model.source.cfg.clone()
    cfg.DATASET.ROOT = root
    if not cfg.DATASET.NAME:
        raise ValueError(f"{model.source.origin} does not name its data set")
    dataset = build_dataset(cfg)
    if list(dataset.classnames) != model.classnames:
        raise ValueError(f"the classes of {cfg.DATASET.NAME} in {root!r} are not those of the model")
    if not (items := dataset.test):
        raise ValueError(f"{cfg.DATASET.NAME} has no test set in {root!r}")
    return Labeled([item.impath for item in items], torch.tensor([item.label for item in items]))


def outcome(model: Model, data: Labeled) -> Outcome:
    """Predictions of the pictures of a test set."""
    probability, predicted = (model.logits(data.paths) / model.temperature).softmax(dim=1).max(dim=1)
    return Outcome(data.paths, data.labels, predicted, probability)


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(C, C) counts: row = true class, column = predicted class."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def worst(found: Outcome, count: int = 20) -> list[int]:
    """Places of the wrong predictions with the highest probability, falling."""
    wrong = (~found.correct).nonzero().flatten()
    return wrong[found.probability[wrong].argsort(descending=True, stable=True)][:count].tolist()


def spread_sample(count: int, most: int = MOST_POINTS) -> list[int]:
    """At most `most` of `count` places, evenly spread."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


@torch.no_grad()
def features_before_and_after(model: Model, paths: Sequence[str]) -> tuple[Tensor, Tensor]:
    """L2-normalised features (n, E) of pictures by plain CLIP and by the method, the mean over its visual modes."""
    prompted, trainer = model.prompted, model.trainer
    trainer.set_model_mode("eval")
    before = []
    for image in model.image_batches(paths):
        with trainer.test_precision.autocast(), without_adapters(prompted.clip):
            before.append(normalise(prompted.clip.encode_image(image.to(model.device)).pooled).cpu())
    after = model.image_features(paths)
    return torch.cat(before), after if after.dim() == 2 else normalise(after.mean(dim=1))


def check_projections(names: Sequence[str]) -> None:
    """Raise ImportError if UMAP is among the projections and not installed."""
    if "umap" in names and importlib.util.find_spec("umap") is None:
        raise ImportError("--projection umap needs umap-learn: pip install umap-learn")


def in_two_dimensions(features: Tensor, projection: str = "tsne", seed: int = 0) -> np.ndarray:
    """Places (n, 2) of features (n, E), by cosine distance.

    Args:
        projection: "tsne" (van der Maaten & Hinton, 2008) or "umap" (McInnes et al., 2018), which is a package.

    Raises:
        ValueError: fewer than 4 pictures.
    """
    count = len(features)
    if count < 4:
        raise ValueError(f"{PROJECTIONS[projection]} of {count} pictures: expected at least 4")
    if projection == "umap":
        from umap import UMAP

        start = "spectral" if count > SPECTRAL else "random"
        method: Any = UMAP(n_neighbors=min(15, count - 1), metric="cosine", init=start, random_state=seed, n_jobs=1)
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (count - 1) / 3)
        method = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed)
    return method.fit_transform(features.float().numpy())
