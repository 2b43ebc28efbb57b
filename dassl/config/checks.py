"""Values that keys may take, checked together before a run starts."""

from __future__ import annotations

from collections.abc import Callable

from .errors import ConfigError
from .files import leaves
from .node import CfgNode
from .options import SCHEMA

__all__ = ["check_values", "problems_of"]


def check_values(cfg: CfgNode, relations: Callable[[CfgNode], list[str]] | None = None) -> None:
    """Check every declared key (`SCHEMA`) and the relations between the engine's keys.

    Args:
        relations: problems of the keys that a method has, with one another; asked if each is right by itself.

    Raises:
        ConfigError: lists every value out of range with the values allowed.
    """
    problems = problems_of(cfg)
    wrong = {problem.split(" ")[0] for problem in problems}
    problems += [text for keys, check in RELATIONS if not wrong.intersection(keys) and (text := check(cfg))]
    if relations is not None and not any(key.startswith("TRAINER.") for key in wrong):
        problems += relations(cfg)
    if problems:
        raise ConfigError("the config", problems)


def problems_of(cfg: CfgNode, prefixes: str | tuple[str, ...] = "") -> list[str]:
    """Declared keys below `prefixes` whose values are not allowed, each with what was expected."""
    found = [(key, SCHEMA[key].problem(value)) for key, value in leaves(cfg) if key in SCHEMA]
    return [f"{key} {problem}" for key, problem in found if problem and key.startswith(prefixes)]


def _warmup(cfg: CfgNode) -> str:
    warmup, epochs = cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.MAX_EPOCH
    by_batch = cfg.OPTIM.LR_SCHEDULER.startswith("batch_")
    if warmup < epochs or (warmup == epochs and not by_batch):
        return ""
    expected = "fewer than" if by_batch else "at most"
    return f"OPTIM.WARMUP_EPOCH is {warmup}, expected {expected} the {epochs} of OPTIM.MAX_EPOCH"


def _rate(cfg: CfgNode) -> str:
    if cfg.OPTIM.LR > 0 or not cfg.OPTIM.LR_SCHEDULER.startswith("batch_"):
        return ""
    return f"OPTIM.LR is 0, expected a number above 0 for OPTIM.LR_SCHEDULER {cfg.OPTIM.LR_SCHEDULER}"


def _nesterov(cfg: CfgNode) -> str:
    optim = cfg.OPTIM
    if optim.NAME != "sgd" or not optim.SGD_NESTEROV or (optim.MOMENTUM > 0 and optim.SGD_DAMPNING == 0):
        return ""
    return (
        f"OPTIM.SGD_NESTEROV is True, expected with it OPTIM.MOMENTUM above 0 (is {optim.MOMENTUM}) "
        f"and OPTIM.SGD_DAMPNING 0 (is {optim.SGD_DAMPNING})"
    )


def _layers(cfg: CfgNode) -> str:
    if not cfg.OPTIM.STAGED_LR or cfg.OPTIM.NEW_LAYERS:
        return ""
    return "OPTIM.STAGED_LR is True, expected with it names of layers in OPTIM.NEW_LAYERS"


def _blur(cfg: CfgNode) -> str:
    kernel, side = cfg.INPUT.GB_K, min(cfg.INPUT.SIZE)
    if "gaussian_blur" not in cfg.INPUT.TRANSFORMS or kernel // 2 < side:
        return ""
    return f"INPUT.GB_K is {kernel}, expected less than twice the {side} pixels of INPUT.SIZE"


def _views(cfg: CfgNode) -> str:
    views = cfg.DATALOADER.K_TRANSFORMS
    if views == 1 or not cfg.INPUT.NO_TRANSFORM:
        return ""
    return f"DATALOADER.K_TRANSFORMS is {views}, expected 1 with INPUT.NO_TRANSFORM"


def _more_tests(cfg: CfgNode) -> str:
    test = cfg.TEST
    asked = [key for key in ("CALIBRATE", "OOD_DATASETS", "JOINT") if test[key]]
    if not asked:
        return ""
    if test.EVALUATOR != "Classification":
        return f"TEST.{asked[0]} is {test[asked[0]]!r}, expected it unset with TEST.EVALUATOR {test.EVALUATOR}"
    if test.CALIBRATE and test.SPLIT == "val":
        return "TEST.CALIBRATE is True, expected False with TEST.SPLIT val, whose images it learns from"
    if test.JOINT and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        return (
            f"TEST.JOINT is True, expected DATASET.SUBSAMPLE_CLASSES all with it (is {cfg.DATASET.SUBSAMPLE_CLASSES})"
        )
    return ""


RELATIONS: tuple[tuple[set[str], Callable[[CfgNode], str]], ...] = (
    ({"OPTIM.WARMUP_EPOCH", "OPTIM.MAX_EPOCH"}, _warmup),
    ({"OPTIM.LR"}, _rate),
    ({"OPTIM.MOMENTUM", "OPTIM.SGD_DAMPNING"}, _nesterov),
    ({"OPTIM.NEW_LAYERS"}, _layers),
    ({"INPUT.GB_K", "INPUT.SIZE", "INPUT.TRANSFORMS"}, _blur),
    ({"DATALOADER.K_TRANSFORMS"}, _views),
    ({"TEST.CALIBRATE", "TEST.OOD_DATASETS", "TEST.JOINT", "TEST.SPLIT", "DATASET.SUBSAMPLE_CLASSES"}, _more_tests),
)
"""Keys that have to be right by themselves first, and what is wrong with them together ("" if nothing is)."""
