"""Heads by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability

__all__ = ["HEAD_REGISTRY", "build_head", "mlp"]

logger = logging.getLogger(__name__)

HEAD_REGISTRY = Registry("HEAD")
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU}


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """The head registered as `name`, built with `kwargs`; ValueError if there is none of that name."""
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        logger.info("Head: %s", name)
    return HEAD_REGISTRY.get(name)(**kwargs)


@HEAD_REGISTRY.register()
def mlp(
    in_features: int = 2048,
    hidden_layers: Sequence[int] = (),
    activation: str = "relu",
    bn: bool = True,
    dropout: float = 0.0,
    verbose: bool = True,
) -> nn.Sequential:
    """Linear layers of the widths `hidden_layers` with norm, activation and dropout; `out_features` is the last width.

    Raises:
        ValueError: no hidden layer, or an unknown activation.
    """
    hidden = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
    if not hidden:
        raise ValueError("MODEL.HEAD.HIDDEN_LAYERS is empty, expected at least one width")
    check_availability(activation, list(_ACTIVATIONS))
    layers: list[nn.Module] = []
    for width_in, width_out in zip([in_features, *hidden], hidden):
        layers.append(nn.Linear(width_in, width_out))
        if bn:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(_ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    network = nn.Sequential(*layers)
    network.out_features = hidden[-1]  # type: ignore[assignment]
    return network
