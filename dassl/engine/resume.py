"""The rolling resume state: everything a run needs to go on as if it had never been stopped.

OUTPUT_DIR/resume.pth.tar is replaced after every TRAIN.RESUME_FREQ epochs by a whole new file, so a run that is killed
at any moment has either the state of the epoch before or of this one. It holds tensors and plain Python values only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from yacs.config import CfgNode

from dassl.utils import atomic_write, distributed, load_checkpoint
from dassl.utils.torchtools import BEST_MODEL, check_plain

from .build import TRAINER_REGISTRY
from .checkpoints import check_classnames, check_weights, read_checkpoint
from .random_state import loader_state, random_state, set_loader_state, set_random_state

if TYPE_CHECKING:
    from .simple import SimpleTrainer

logger = logging.getLogger(__name__)

FILE_NAME = "resume.pth.tar"
VERSION = 1

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
        "TRAIN.PRINT_FREQ",
        "TRAIN.PROGRESS",
        "TRAIN.RESUME_FREQ",
        "VERBOSE",
    }
)


def resume_file(directory: str | Path) -> Path:
    """Where the resume state of a run in `directory` is."""
    return Path(directory) / FILE_NAME


def save_resume_state(trainer: SimpleTrainer) -> None:
    """Replace OUTPUT_DIR/resume.pth.tar by the state after the epoch that just ended.

    Raises:
        ValueError: a model, scheduler or extra_state() holds something that is neither a tensor nor a plain value.
        OSError: no space left, or the folder cannot be written; the old file stays.
    """
    randoms = distributed.all_gather_object({"random": random_state(), "loaders": _loaders(trainer)})
    if distributed.is_main_process():
        state = {
            "version": VERSION,
            "epoch": trainer.epoch + 1,
            "models": {name: model.state_dict() for name, model in trainer._models.items()},
            "optims": {name: None if o is None else o.state_dict() for name, o in trainer._optims.items()},
            "scheds": {name: None if s is None else s.state_dict() for name, s in trainer._scheds.items()},
            "scaler": None if trainer.precision.scaler is None else trainer.precision.scaler.state_dict(),
            "processes": randoms,
            "best_result": float(trainer.best_result),
            "extra": trainer.extra_state(),
            "elapsed": trainer.elapsed(),
            "train_seconds": trainer.train_seconds,
            "train_images": trainer.train_images,
            "records": trainer.metrics.size(),
            "classnames": trainer.classnames(),
            "config": trainer.config_text(),
            "config_hash": config_hash(trainer.cfg),
        }
        check_plain(state, "the resume state")
        atomic_write(resume_file(trainer.output_dir), lambda file: torch.save(state, file))
    distributed.barrier()


def load_resume_state(trainer: SimpleTrainer, directory: str) -> dict[str, Any]:
    """Give a trainer the weights, optimisers, schedules and counters of the resume state in `directory`.

    Returns:
        The state, whose random states `set_random_states` uses right before the next epoch.

    Raises:
        ValueError: the file is damaged, or of a run with another config, model or number of processes.
    """
    path = resume_file(directory)
    state = distributed.broadcast_object(load_checkpoint(path) if distributed.is_main_process() else None)
    if state.get("version") != VERSION:
        raise ValueError(f'"{path}" is no resume state of version {VERSION}; delete it to train from the beginning')
    check_same_config(state["config"], trainer.cfg, directory)
    world = distributed.get_world_size()
    if len(state["processes"]) != world:
        raise ValueError(
            f'"{path}" is of a run with {len(state["processes"])} processes, this one has {world}; use as many again'
        )
    names = list(trainer._models)
    if names != list(state["models"]):
        raise ValueError(f'"{path}" holds models {", ".join(state["models"])}, this run has {", ".join(names)}')
    check_classnames(path, state, trainer.classnames())
    for name, model in trainer._models.items():
        check_weights(path, model, state["models"][name])
    for name, model in trainer._models.items():
        model.load_state_dict(state["models"][name])
        for own, saved in ((trainer._optims[name], state["optims"]), (trainer._scheds[name], state["scheds"])):
            if own is not None and saved[name] is not None:
                own.load_state_dict(saved[name])
    if trainer.precision.scaler is not None and state["scaler"]:
        trainer.precision.scaler.load_state_dict(state["scaler"])
    trainer.load_extra_state(state["extra"])
    trainer.best_result = state["best_result"]
    trainer.elapsed_before = state["elapsed"]
    trainer.train_seconds, trainer.train_images = state["train_seconds"], state["train_images"]
    logger.info("Resume %s after epoch %d", path, state["epoch"])
    return state


def set_random_states(trainer: SimpleTrainer, state: dict[str, Any]) -> None:
    """Put all random generators and the positions of the training loaders where the saved run had them."""
    own = state["processes"][distributed.get_rank()]
    for name, value in own["loaders"].items():
        set_loader_state(getattr(trainer, name), value)
    set_random_state(own["random"])


def copy_best(trainer: SimpleTrainer, directory: str) -> None:
    """Copy the best models of another folder, so that the run that continues it can deploy them."""
    if distributed.is_main_process():
        for name in trainer._models:
            best = Path(directory) / name / BEST_MODEL
            if best.is_file():
                _copy(best, Path(trainer.output_dir) / name / BEST_MODEL)
    distributed.barrier()


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    atomic_write(target, lambda file: file.write(content))


def best_result(trainer: SimpleTrainer, directory: str) -> float:
    """Validation figure of the best models saved in a folder, -inf if there are none."""
    paths = [Path(directory) / name / BEST_MODEL for name in trainer._models]
    if not all(path.is_file() for path in paths):
        return -math.inf
    figure = read_checkpoint(paths[0]).get("val_result")
    return -math.inf if figure is None else float(figure)


def _loaders(trainer: SimpleTrainer) -> dict[str, Any]:
    names = ("train_loader_x", "train_loader_u")
    return {name: loader_state(getattr(trainer, name)) for name in names if getattr(trainer, name) is not None}


def config_values(config: str | CfgNode) -> dict[str, Any]:
    """A config as {"OPTIM.LR": 0.002, ...}, tuples as lists, without the keys that may change between starts."""
    content = yaml.safe_load(config if isinstance(config, str) else config.dump()) or {}
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
    return hashlib.sha256(json.dumps(config_values(cfg), sort_keys=True).encode()).hexdigest()[:16]


def config_differences(stored: str, cfg: CfgNode) -> list[str]:
    """Keys whose values differ and matter, as "KEY: stored -> now".

    Options of other trainers do not matter if the trainer in use declares its own by `defaults()`. A key that only one
    config has counts only among its own: an option may have been added to the engine in between.
    """
    before, now = config_values(stored), config_values(cfg)
    name = cfg.TRAINER.NAME
    own = _option_nodes(name)
    others = {node for other in TRAINER_REGISTRY.registered_names() for node in _option_nodes(other)} - own
    foreign = tuple(f"TRAINER.{node}." for node in others) if own else ()
    mine = tuple(f"TRAINER.{node}." for node in own)
    differences = []
    for key in sorted({*before, *now}):
        both = key in before and key in now
        matters = not key.startswith(foreign) and (both or key.startswith(mine))
        if matters and before.get(key) != now.get(key):
            values = [str(values.get(key, "not set")) for values in (before, now)]
            differences.append(f"{key}: {values[0]} -> {values[1]}")
    return differences


def _option_nodes(name: str) -> set[str]:
    """Nodes below TRAINER that a registered trainer declares; none for one that is not known or declares none."""
    trainer: Any = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None
    return set(trainer.defaults()) if hasattr(trainer, "defaults") else set()


def check_same_config(stored: str, cfg: CfgNode, directory: str) -> None:
    """Check that a run in `directory` with the config `stored` can be continued, or its result used, under `cfg`.

    Raises:
        ValueError: the configs differ in something that matters; the message lists the keys with both values.
    """
    differences = config_differences(stored, cfg)
    if differences:
        raise ValueError(
            f'"{directory}" holds a run with another config ({"; ".join(differences)}); '
            "use another OUTPUT_DIR, or the config of that run, or delete the folder"
        )
