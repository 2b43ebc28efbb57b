"""Registries of backbones and heads for trainers written for Dassl. The methods of this project use none of them."""

from .backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from .head import HEAD_REGISTRY, build_head

__all__ = ["BACKBONE_REGISTRY", "HEAD_REGISTRY", "Backbone", "build_backbone", "build_head"]
