"""Optimisers and learning-rate schedules by name."""

from .lr_scheduler import BATCH_SCHEDS, BatchCosine, ConstantWarmupScheduler, LinearWarmupScheduler, build_lr_scheduler
from .optimizer import build_optimizer

__all__ = [
    "BATCH_SCHEDS",
    "BatchCosine",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
    "build_optimizer",
]
