"""Values that the engine's keys may take, checked together before a run starts."""

from __future__ import annotations

import re
from typing import Any

from .node import CfgNode, ConfigError

__all__ = ["check_values"]

_CHOICES = {
    "DATALOADER.CACHE": ("none", "ram", "disk"),
    "INPUT.INTERPOLATION": ("bilinear", "bicubic", "nearest"),
    "OPTIM.NAME": ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw", "lamb"),
    "OPTIM.LR_SCHEDULER": ("single_step", "multi_step", "cosine", "batch_cosine"),
    "OPTIM.WARMUP_TYPE": ("linear", "constant"),
    "TRAIN.COUNT_ITER": ("train_x", "train_u", "smaller_one"),
    "DATASET.PAIRS.TEST_SPLIT": ("test", "val"),
    "TEST.SPLIT": ("test", "val"),
    "TEST.FINAL_MODEL": ("last_step", "best_val"),
}
_AT_LEAST = {
    "DATALOADER.CACHE_RAM_GIB": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "OPTIM.ACCUMULATE": 1,
    "DATALOADER.K_TRANSFORMS": 1,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
    "DATALOADER.TRAIN_U.BATCH_SIZE": 1,
    "DATALOADER.TEST.BATCH_SIZE": 1,
    "OPTIM.LR": 0,
    "OPTIM.WEIGHT_DECAY": 0,
    "OPTIM.LAMB_MAX_NORM": 0,
    "OPTIM.FINAL_LR": 0,
    "DATASET.PAIRS.EPOCH_PAIRS": 0,
    "DATASET.PAIRS.BUFFER": 1,
    "DATASET.PAIRS.MAX_DAMAGED": 0,
    "OPTIM.MAX_EPOCH": 1,
    "TRAIN.CHECKPOINT_FREQ": 0,
    "TRAIN.IMAGE_CHUNK": 0,
    "TRAIN.MEMORY_BUDGET": 0,
    "TRAIN.TEXT_CHUNK": 0,
    "TRAIN.RESUME_FREQ": 0,
    "TRAIN.PRINT_FREQ": 1,
}


def check_values(cfg: CfgNode) -> None:
    """Check what the types alone cannot: choices, ranges and lengths.

    Raises:
        ConfigError: lists every error with the value found and the values allowed.
    """
    problems = []
    for key, choices in _CHOICES.items():
        value = _get(cfg, key)
        if value not in choices:
            problems.append(f"{key} is {value!r}, expected one of {', '.join(choices)}")
    for key, least in _AT_LEAST.items():
        value = _get(cfg, key)
        if not value >= least:
            problems.append(f"{key} is {value!r}, expected {least} or more")
    classes = cfg.DATASET.SUBSAMPLE_CLASSES
    if classes not in ("all", "base", "new") and not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?/[1-9]\d*", classes):
        problems.append(
            f"DATASET.SUBSAMPLE_CLASSES is {classes!r}, expected all, base, new, or sets such as 2/3 or 1-2/3"
        )
    if cfg.SEED >= 2**32:
        problems.append(f"SEED is {cfg.SEED}, expected at most {2**32 - 1} (negative: no seed)")
    size = cfg.INPUT.SIZE
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        problems.append(f"INPUT.SIZE is {size!r}, expected two positive integers (height, width)")
    for key in ("INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD"):
        value = _get(cfg, key)
        if len(value) != 3 or not all(isinstance(part, (int, float)) for part in value):
            problems.append(f"{key} is {value!r}, expected three numbers")
        elif key == "INPUT.PIXEL_STD" and min(value) <= 0:
            problems.append(f"{key} is {value!r}, expected three positive numbers")
    if not cfg.OPTIM.STEPSIZE or not all(type(step) is int for step in cfg.OPTIM.STEPSIZE):
        problems.append(f"OPTIM.STEPSIZE is {cfg.OPTIM.STEPSIZE!r}, expected at least one integer")
    if problems:
        raise ConfigError("the config", problems)


def _get(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node
