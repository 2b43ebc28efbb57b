"""The classifier SimpleTrainer builds when a trainer brings no model: a torchvision network and a linear layer."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.utils import get_most_similar_str_to_a_from_b

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class SimpleNet(nn.Module):
    """Backbone, optional head "mlp", and a linear classifier if there are classes.

    Args:
        cfg: the whole config; not read, part of the signature that Dassl's users know.
        model_cfg: BACKBONE.{NAME, PRETRAINED}, a classification network of torchvision, and HEAD.
        num_classes: 0 leaves the classifier out.

    Raises:
        ValueError: unknown backbone, head or activation.
    """

    def __init__(self, cfg: CfgNode | None, model_cfg: CfgNode, num_classes: int, **kwargs: Any):
        super().__init__()
        self.backbone, width = _backbone(model_cfg.BACKBONE.NAME, model_cfg.BACKBONE.PRETRAINED, **kwargs)
        self.head = None
        if model_cfg.HEAD.NAME:
            self.head, width = _mlp(width, model_cfg.HEAD)
        self.classifier = nn.Linear(width, num_classes) if num_classes > 0 else None
        self._fdim = width

    @property
    def fdim(self) -> int:
        """Width of the features."""
        return self._fdim

    def forward(self, x: Tensor, return_feature: bool = False) -> Any:
        """Logits (B, C) of images (B, 3, H, W), with features (B, d) on request; features alone without classes."""
        feature = self.backbone(x)
        if self.head is not None:
            feature = self.head(feature)
        if self.classifier is None:
            return feature
        logits = self.classifier(feature)
        return (logits, feature) if return_feature else logits


def _backbone(name: str, pretrained: bool, **kwargs: Any) -> tuple[nn.Module, int]:
    """A torchvision classification network without its last linear layer, and the width of what comes out."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        similar = get_most_similar_str_to_a_from_b(name, known)
        raise ValueError(f"MODEL.BACKBONE.NAME is {name!r}, expected a network of torchvision (do you mean {similar}?)")
    model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"MODEL.BACKBONE.NAME is {name!r}, which does not end in a linear layer")
    path, last = linear[-1]
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, last.in_features


def _mlp(width: int, head: CfgNode) -> tuple[nn.Module, int]:
    if head.NAME != "mlp":
        raise ValueError(f"MODEL.HEAD.NAME is {head.NAME!r}, expected mlp or nothing")
    if head.ACTIVATION not in _ACTIVATIONS:
        raise ValueError(f"MODEL.HEAD.ACTIVATION is {head.ACTIVATION!r}, expected one of {', '.join(_ACTIVATIONS)}")
    layers: list[nn.Module] = []
    for hidden in head.HIDDEN_LAYERS:
        layers.append(nn.Linear(width, hidden))
        if head.BN:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(_ACTIVATIONS[head.ACTIVATION]())
        if head.DROPOUT > 0:
            layers.append(nn.Dropout(head.DROPOUT))
        width = hidden
    return nn.Sequential(*layers), width
