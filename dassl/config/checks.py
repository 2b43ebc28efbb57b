"""Values that keys may take, checked together before a run starts."""

from __future__ import annotations

from .errors import ConfigError
from .files import leaves
from .node import CfgNode
from .options import SCHEMA

__all__ = ["check_values"]


def check_values(cfg: CfgNode) -> None:
    """Check every declared key (`SCHEMA`) and the relations between the engine's keys.

    Raises:
        ConfigError: lists every value out of range with the values allowed.
    """
    found = [(key, SCHEMA[key].problem(value)) for key, value in leaves(cfg) if key in SCHEMA]
    problems = [f"{key} {problem}" for key, problem in found if problem]
    wrong = {key for key, problem in found if problem}
    problems += [text for keys, text in _relations(cfg) if not wrong.intersection(keys)]
    if problems:
        raise ConfigError("the config", problems)


def _relations(cfg: CfgNode) -> list[tuple[set[str], str]]:
    """Values that do not go together: their keys, and what is wrong."""
    optim, epochs = cfg.OPTIM, cfg.OPTIM.MAX_EPOCH
    batchwise = optim.LR_SCHEDULER == "batch_cosine"
    rules = [
        (
            epochs < optim.WARMUP_EPOCH or (batchwise and epochs == optim.WARMUP_EPOCH),
            {"OPTIM.WARMUP_EPOCH", "OPTIM.MAX_EPOCH"},
            f"OPTIM.WARMUP_EPOCH is {optim.WARMUP_EPOCH}, expected fewer than the {epochs} of OPTIM.MAX_EPOCH"
            if batchwise
            else f"OPTIM.WARMUP_EPOCH is {optim.WARMUP_EPOCH}, expected at most the {epochs} of OPTIM.MAX_EPOCH",
        ),
        (
            batchwise and optim.LR == 0,
            {"OPTIM.LR"},
            "OPTIM.LR is 0, expected a number above 0 for OPTIM.LR_SCHEDULER batch_cosine",
        ),
        (
            optim.NAME == "sgd" and optim.SGD_NESTEROV and (optim.MOMENTUM <= 0 or optim.SGD_DAMPNING != 0),
            {"OPTIM.MOMENTUM", "OPTIM.SGD_DAMPNING"},
            f"OPTIM.SGD_NESTEROV is True, expected with it OPTIM.MOMENTUM above 0 (is {optim.MOMENTUM}) "
            f"and OPTIM.SGD_DAMPNING 0 (is {optim.SGD_DAMPNING})",
        ),
        (
            optim.STAGED_LR and not optim.NEW_LAYERS,
            {"OPTIM.NEW_LAYERS"},
            "OPTIM.STAGED_LR is True, expected with it names of layers in OPTIM.NEW_LAYERS",
        ),
        (
            cfg.INPUT.NO_TRANSFORM and cfg.DATALOADER.K_TRANSFORMS > 1,
            {"DATALOADER.K_TRANSFORMS"},
            f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}, expected 1 with INPUT.NO_TRANSFORM",
        ),
    ]
    return [(keys, text) for broken, keys, text in rules if broken]
