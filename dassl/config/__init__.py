"""Config tree: the defaults of the engine, strict merging, and the check of values."""

from .checks import check_values
from .defaults import default_config
from .node import CfgNode, ConfigError

__all__ = ["CfgNode", "ConfigError", "check_values", "clean_cfg", "get_cfg_default"]


def get_cfg_default() -> CfgNode:
    """A fresh copy of the defaults; changing it changes nothing else."""
    return default_config()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove from cfg.TRAINER, in place, the sections of every other trainer than `trainer`."""
    for key in list(cfg.TRAINER.keys()):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
