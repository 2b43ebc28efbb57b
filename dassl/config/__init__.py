"""Config tree: the defaults of the engine, strict merging, and the check of values."""

from .checks import check_values
from .defaults import default_config
from .errors import ConfigError
from .node import CfgNode, accept_lists
from .options import SCHEMA, Option, method_options

__all__ = [
    "SCHEMA",
    "CfgNode",
    "ConfigError",
    "Option",
    "accept_lists",
    "check_values",
    "clean_cfg",
    "get_cfg_default",
    "method_options",
]


def get_cfg_default() -> CfgNode:
    """A fresh copy of the defaults; changing it changes nothing else."""
    return default_config()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove from cfg.TRAINER, in place, the sections of every other trainer than `trainer`."""
    for key in list(cfg.TRAINER.keys()):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
