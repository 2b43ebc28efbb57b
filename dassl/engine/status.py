"""State and config of the run in a folder: the one place that reads them from its files.

`run_state` and `read_result` say how far it is; `check_same_config` if a later start may continue it or use its result.
Which result belongs to which run of a recipe is in experiments/status.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from dassl.utils import read_json
from dassl.utils.checksums import check_sum
from dassl.utils.yaml_files import load_yaml

from .build import TRAINER_REGISTRY

CONFIG, ENVIRONMENT, RESULT, DONE, FAILED, LOCK = "config.yaml", "env.json", "result.json", "DONE", "FAILED", ".lock"
RESUME = "resume.pth.tar"

# Keys that may change between two starts of a run: they move files, threads and messages, never the result.
FREE_KEYS = frozenset(
    {
        "DATALOADER.CACHE",
        "DATALOADER.CACHE_RAM_GIB",
        "DATALOADER.NUM_WORKERS",
        "DATALOADER.PERSISTENT_WORKERS",
        "DATALOADER.PIN_MEMORY",
        "DATASET.CACHE_DIR",
        "DATASET.ROOT",
        "IMPORTS",
        "OUTPUT_DIR",
        "RESUME",
        "TEST.FEATURE_CACHE",
        "TRAIN.CHECKPOINT_FREQ",
        "TRAIN.OTHER_MACHINE",
        "TRAIN.PRINT_FREQ",
        "TRAIN.PROGRESS",
        "TRAIN.RESUME_FREQ",
        "VERBOSE",
    }
)


def resume_file(directory: str | Path) -> Path:
    """Path of the resume state of a run in `directory`."""
    return Path(directory) / RESUME


def run_state(directory: str | os.PathLike[str]) -> str:
    """State of the run in a folder.

    Returns:
        "done": result.json and DONE are there. "failed": the last start ended in an error, FAILED says which.
        "incomplete": it was started and neither finished nor failed, so it is running or was killed. "new": anything
        else; a folder alone means nothing. A run that is not done is continued by starting it again.
    """
    path = Path(directory)
    if (path / DONE).is_file() and (path / RESULT).is_file():
        return "done"
    if (path / FAILED).is_file():
        return "failed"
    return "incomplete" if (path / CONFIG).is_file() or resume_file(path).is_file() else "new"


def read_result(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """result.json of a finished run.

    Raises:
        FileNotFoundError: there is none; the message says how far the run is.
        ValueError: it is damaged.
    """
    path = Path(directory) / RESULT
    if not path.is_file():
        raise FileNotFoundError(f'"{path}" does not exist: the run in "{directory}" is {run_state(directory)}')
    check_sum(path)
    result = read_json(path)
    if not isinstance(result, dict):
        raise ValueError(
            f'"{path}" is damaged: it holds {result!r:.50}, expected the figures of a run; {again(path.parent)}'
        )
    return result


def again(directory: str | os.PathLike[str]) -> str:
    """Advice to do a run again."""
    return f'delete the folder "{directory}" to do the run again'


def config_values(config: str | CfgNode) -> dict[str, Any]:
    """A config as {"OPTIM.LR": 0.002, ...}, tuples as lists, without the keys that may change between starts.

    Raises:
        ValueError: a text that is not a config.
    """
    try:
        content = load_yaml(config if isinstance(config, str) else config.dump()) or {}
    except yaml.YAMLError as err:
        raise ValueError(f"its config is not valid YAML: {' '.join(str(err).split())[:200]}") from err
    if not isinstance(content, dict):
        raise ValueError(f"its config is {content!r:.50}, expected keys and values")
    found: dict[str, Any] = {}
    _flatten(content, "", found)
    return {key: value for key, value in found.items() if key not in FREE_KEYS}


def _flatten(node: dict[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", found)
        else:
            found[prefix + key] = value


def config_hash(cfg: str | CfgNode) -> str:
    """First 16 hex digits of the sha256 of the config values that decide about the result."""
    return _hash(cfg if isinstance(cfg, str) else cfg.dump())


@functools.lru_cache(maxsize=8)  # a run asks at every epoch
def _hash(text: str) -> str:
    return hashlib.sha256(json.dumps(config_values(text), sort_keys=True).encode()).hexdigest()[:16]


def config_differences(stored: str, cfg: CfgNode) -> list[str]:
    """Keys whose values differ and matter, as "KEY: stored -> now".

    Options of other trainers do not matter if the trainer in use declares its own by `defaults()`. A key that only one
    config has counts only among its own: an option may have been added to the engine in between.
    """
    before, now = config_values(stored), config_values(cfg)
    name = cfg.TRAINER.NAME
    own = option_nodes(name)
    others = {node for other in TRAINER_REGISTRY.registered_names() for node in option_nodes(other)} - own
    foreign = tuple(f"TRAINER.{node}." for node in others) if own else ()
    mine = tuple(f"TRAINER.{node}." for node in own)
    differences = []
    for key in sorted({*before, *now}):
        both = key in before and key in now
        matters = not key.startswith(foreign) and (both or key.startswith(mine))
        if key.endswith(".PREC") and "auto" in (before.get(key), now.get(key)):
            continue  # settled when a run begins, see machine.py
        if matters and before.get(key) != now.get(key):
            values = [str(values.get(key, "not set")) for values in (before, now)]
            differences.append(f"{key}: {values[0]} -> {values[1]}")
    return differences


def option_nodes(name: str) -> set[str]:
    """Nodes below TRAINER that a registered trainer declares; none for one that is not known or declares none."""
    trainer: Any = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None
    return set(trainer.defaults()) if hasattr(trainer, "defaults") else set()


def check_same_config(stored: str, cfg: CfgNode, directory: str) -> None:
    """Check that a run in `directory` with the config `stored` can be continued, or its result used, under `cfg`.

    Raises:
        ValueError: the configs differ in something that matters; the message lists the keys with both values. Or
            the stored one is damaged.
    """
    try:
        differences = config_differences(stored, cfg)
    except ValueError as err:
        raise ValueError(f'the run in "{directory}" is damaged: {err}; {again(directory)}') from err
    if differences:
        raise ValueError(
            f'"{directory}" holds a run with another config ({"; ".join(differences)}); '
            "use another OUTPUT_DIR, or the config of that run, or delete the folder"
        )
