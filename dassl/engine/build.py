"""The registry of trainers and the config nodes they bring along."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry, get_most_similar_str_to_a_from_b

logger = logging.getLogger(__name__)

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode, data: Any = None) -> Any:
    """The trainer that TRAINER.NAME asks for, constructed with `cfg` (data, model and evaluator included).

    Args:
        data: in the place of the data of `cfg`, such as a `dassl.data.class_list.ClassList`.

    Raises:
        ValueError: no trainer of that name is registered; the message lists those that are.
    """
    name = cfg.TRAINER.NAME
    known = TRAINER_REGISTRY.registered_names()
    if name not in known:
        similar = get_most_similar_str_to_a_from_b(name, known)
        hint = f" (do you mean {similar}?)" if name and similar else ""
        choices = ", ".join(sorted(known)) or "none, no trainer is registered"
        raise ValueError(
            f"TRAINER.NAME is {name!r}{hint}, expected one of {choices}; "
            "a trainer in your own file is made known with --import FILE.py"
        )
    if cfg.VERBOSE:
        logger.info("Loading trainer: %s", name)
    trainer = TRAINER_REGISTRY.get(name)
    if name in TRAINER_REGISTRY.replaced:
        place = getattr(sys.modules.get(trainer.__module__), "__file__", trainer.__module__)
        logger.warning("%s is that of %s, not the built-in one", name, place)
    return trainer(cfg) if data is None else trainer(cfg, data)


def add_trainer_defaults(cfg: CfgNode) -> None:
    """Merge the options of every registered trainer into `cfg.TRAINER`.

    A trainer class declares them by a static method `defaults() -> CfgNode`, such as CfgNode({"COOP": {"N_CTX": 16}}).
    Several trainers may share a node; they then have to agree about the defaults.

    Raises:
        ValueError: two trainers give one key different defaults.
    """
    names = TRAINER_REGISTRY.registered_names()
    trainers = [*TRAINER_REGISTRY.replaced.items(), *((name, TRAINER_REGISTRY.get(name)) for name in names)]
    for name, trainer in trainers:  # sections of a replaced one stay: its successor may use them
        defaults = getattr(trainer, "defaults", None)
        if defaults is not None:
            _add(cfg.TRAINER, defaults(), ["TRAINER"], name)


def extend_config(cfg: CfgNode, extend: Callable[[CfgNode], Any] | None) -> None:
    """Take over what a function `extend_cfg(cfg)` sets, as scripts written for Dassl have it; None changes nothing.

    Such functions replace whole sections (`cfg.TRAINER.COOP = CN()`): keys that they do not set keep their values.
    """
    if extend is not None:
        wider = cfg.clone()
        extend(wider)
        _take(cfg, wider)


def _take(node: CfgNode, wider: CfgNode) -> None:
    for key, value in wider.items():
        if isinstance(value, CfgNode) and isinstance(node.get(key), CfgNode):
            _take(node[key], value)
        else:
            node[key] = value


def _add(node: CfgNode, defaults: CfgNode, path: list[str], trainer: str) -> None:
    for key, value in defaults.items():
        if key not in node:
            node[key] = value.clone() if isinstance(value, CfgNode) else value
        elif isinstance(value, CfgNode) and isinstance(node[key], CfgNode):
            _add(node[key], value, [*path, key], trainer)
        elif node[key] != value:
            raise ValueError(
                f"trainer {trainer} declares {'.'.join([*path, key])} with default {value!r}, "
                f"but it exists already with {node[key]!r}"
            )
