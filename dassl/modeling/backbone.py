"""Backbones by name."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]

logger = logging.getLogger(__name__)

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """A network from images to features (B, out_features); a subclass sets `_out_features`."""

    _out_features: int

    @property
    def out_features(self) -> int:
        """Width of the features."""
        return self._out_features


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """The backbone registered as `name`, built with `kwargs`; ValueError if there is none of that name."""
    check_availability(name, BACKBONE_REGISTRY.registered_names())
    if verbose:
        logger.info("Backbone: %s", name)
    return BACKBONE_REGISTRY.get(name)(**kwargs)
