"""All that trainers ask of their engine: this project's own or, in a checkout of CoOp, the original Dassl.

Trainers import from here and never from `dassl`. On the original, `original` supplies what every method needs; anything
else is an error that says so, when a method that needs it is imported or the part that needs it is used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import dassl.engine as _engine
from dassl.engine import TRAINER_REGISTRY

ORIGINAL = find_spec(f"{_engine.__name__}.precision") is None

if TYPE_CHECKING or not ORIGINAL:
    from dassl.config import CfgNode, ConfigError, Option, method_options
    from dassl.config.checks import problems_of
    from dassl.config.inputs import BACKBONE_INPUTS
    from dassl.data.data_manager import DatasetWrapper, build_data_loader
    from dassl.data.fingerprint import files_hash, transform_repr
    from dassl.data.loader import SeededLoader
    from dassl.data.prefetch import prefetched
    from dassl.data.samplers import SequentialSampler
    from dassl.data.seeding import loader_seed
    from dassl.engine import TrainerX
    from dassl.engine.checkpoints import (
        check_classnames,
        check_weights,
        checkpoint_file,
        last_epoch,
        read_checkpoint,
    )
    from dassl.engine.precision import PRECISIONS, GradientProjection
    from dassl.optim import build_lr_scheduler, build_optimizer
    from dassl.utils import count_num_param, distributed
    from dassl.utils.tools import user_cache
    from dassl.utils.torchtools import BEST_MODEL
else:
    from dassl.optim import build_optimizer
    from dassl.utils import count_num_param

    from .original import (
        BACKBONE_INPUTS,
        PRECISIONS,
        CfgNode,
        ConfigError,
        GradientProjection,
        Option,
        TrainerX,
        build_lr_scheduler,
        distributed,
        method_options,
        problems_of,
    )

    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"the original Dassl has no {name}: this method, or this part of it, needs the engine of ALIGN"
        )


__all__ = [
    "BACKBONE_INPUTS",
    "BEST_MODEL",
    "ORIGINAL",
    "PRECISIONS",
    "TRAINER_REGISTRY",
    "CfgNode",
    "ConfigError",
    "DatasetWrapper",
    "GradientProjection",
    "Option",
    "SeededLoader",
    "SequentialSampler",
    "TrainerX",
    "build_data_loader",
    "build_lr_scheduler",
    "build_optimizer",
    "check_classnames",
    "check_weights",
    "checkpoint_file",
    "count_num_param",
    "distributed",
    "files_hash",
    "last_epoch",
    "loader_seed",
    "method_options",
    "prefetched",
    "problems_of",
    "read_checkpoint",
    "transform_repr",
    "user_cache",
]
