"""Class names in the place of a data set, for a trainer that only predicts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from .transforms import build_transform

__all__ = ["ClassList"]


class ClassList:
    """DataManager without images, for trainers that only need classes: `build_trainer(cfg, ClassList(cfg, names))`.

    Args:
        classnames: C names in the order of their numbers.
        template: of the data set, "" for the default.
        long_names: class names are captions, which may be cut to what a text tower reads.
        backbone: a CLIP that is used in the place of MODEL.BACKBONE.NAME, or None.
    """

    num_source_domains = 0
    train_loader_x: tuple = ()
    train_loader_u = val_loader = test_loader = tfm_train = None

    def __init__(
        self, cfg: Any, classnames: Sequence[str], template: str = "", long_names: bool = False, backbone: Any = None
    ):
        self.lab2cname = dict(enumerate(classnames))
        self.num_classes = len(self.lab2cname)
        self.tfm_test = build_transform(cfg, is_train=False)
        self.backbone = backbone
        self.dataset = SimpleNamespace(
            classnames=list(classnames),
            lab2cname=self.lab2cname,
            num_classes=self.num_classes,
            template=template,
            long_names=long_names,
            items_root="",
            train_x=[],
            train_u=None,
            val=None,
            test=None,
        )
