"""Features of the few training images, the support set, that a method fits in one go."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainers.parts.engine import build_data_loader


def support_features(trainer: Any, views: int = 0) -> tuple[Tensor, Tensor]:
    """Features of plain CLIP for the training images of a `PromptTrainer`, in their order.

    Args:
        views: random training transforms of every image, drawn by the seed; 0 for the test transform, once.

    Returns:
        (V, K, E), not normalised, V at least 1, and the labels (K,).
    """
    items = list(trainer.dm.dataset.train_x)
    loader = build_data_loader(
        trainer.cfg,
        data_source=items * max(1, views),  # every view is an item, and so has its own augmentation
        batch_size=trainer.cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=trainer.dm.tfm_train if views else trainer.dm.tfm_test,
        is_train=False,
        seed=max(0, trainer.cfg.SEED),
    )
    feature, label = trainer.frozen_features(loader)
    return feature.unflatten(0, (-1, len(items))), label[: len(items)]


def check_every_class(trainer: Any, label: Tensor) -> None:
    """Raise ValueError if a class has no image among the labels (K,)."""
    empty = sorted(set(range(trainer.num_classes)) - set(label.tolist()))
    if empty:
        raise ValueError(
            f"{len(empty)} classes have no training image, such as {trainer.lab2cname[empty[0]]!r}: "
            f"{type(trainer).__name__} needs some of every class"
        )
