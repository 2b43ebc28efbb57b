"""The linear classifier that a method comes to where it leaves the image tower as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from align_prompt.model import Model
from dassl.utils import atomic_write
from trainers.base import cosine_score
from trainers.parts.losses import normalise


class Classifier(NamedTuple):
    """logits = x @ weight.T + bias, x the feature of plain CLIP's image tower, L2-normalised if `normalized` says so.

    Attributes:
        weight: (C, E), with the logit scale in it.
        bias: (C,).
        normalized: x has length 1.
    """

    weight: Tensor
    bias: Tensor
    normalized: bool


def classifier_of(model: Model) -> Classifier:
    """The classifier of a model.

    Raises:
        ValueError: there is none; the message says why.
    """
    prompted, trainer = model.prompted, model.trainer
    reason = ""
    if hasattr(trainer, "changes_images"):
        reason = trainer.changes_images()
    elif trainer.get_model_names():
        reason = "the method trains the image tower"
    learner = prompted.learner
    if not reason and learner.conditional:
        reason = "its text depends on the picture"
    if not reason and prompted.score is not cosine_score and learner.linear() is None:
        reason = "its score is not a matrix product with the feature of a picture"
    if reason:
        raise ValueError(f"{model.method} has no classifier matrix: {reason}")
    model.encode_classes()
    if (linear := learner.linear()) is not None:
        weight, bias, normalized = linear
        return Classifier(weight.detach().cpu(), bias.detach().cpu(), normalized)
    with torch.no_grad():
        weight = prompted.clip.logit_scale.float().exp() * normalise(trainer.text.pooled)
    return Classifier(weight.cpu(), torch.zeros(len(weight)), True)


def write_classifier(model: Model, path: Path) -> str:
    """Write weight, bias, normalized, classnames and the backbone's name as .npz, without pickle; returns its shape."""
    found = classifier_of(model)
    arrays: dict[str, Any] = {
        "weight": found.weight.numpy(),
        "bias": found.bias.numpy(),
        "normalized": np.array(found.normalized),
        "classnames": np.array(model.classnames),
        "backbone": np.array(model.backbone),
    }
    atomic_write(path, lambda file: np.savez(file, **arrays))
    return f"{found.weight.shape[0]} classes x {found.weight.shape[1]} features"
