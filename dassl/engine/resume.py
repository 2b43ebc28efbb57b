"""The rolling resume state: everything a run needs to go on as if it had never been stopped.

OUTPUT_DIR/resume.pth.tar is replaced after every TRAIN.RESUME_FREQ epochs by a whole new file, so a run that is killed
at any moment has either the state of the epoch before or of this one. It holds tensors and plain Python values only.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils import distributed, load_checkpoint
from dassl.utils.checksums import recorded_write
from dassl.utils.torchtools import BEST_MODEL, check_plain

from .checkpoints import check_classnames, check_weights, read_checkpoint
from .machine import check_same_machine, machine_of
from .precision import Precision
from .random_state import loader_state, random_state, set_loader_state, set_random_state
from .records import MetricsLog, event_sizes
from .status import check_same_config, config_hash, resume_file

logger = logging.getLogger(__name__)

VERSION = 1
# Entries of a resume state whose type is checked before anything is used.
_ENTRIES: dict[str, Any] = {
    **dict.fromkeys(("models", "optims", "scheds", "extra"), dict),
    **dict.fromkeys(("epoch", "train_images", "records"), int),
    **dict.fromkeys(("best_result", "elapsed", "train_seconds"), (int, float)),
    "processes": list,
    "classnames": list,
    "config": str,
}


class Resumable(Protocol):
    """Attributes of a trainer that are written to, and read from, its resume state."""

    cfg: CfgNode
    output_dir: str
    epoch: int
    precision: Precision
    metrics: MetricsLog
    best_result: float
    elapsed_before: float
    train_seconds: float
    train_images: int
    machines: list[dict[str, Any]]
    _models: OrderedDict[str, nn.Module]
    _optims: OrderedDict[str, Any]
    _scheds: OrderedDict[str, Any]

    def classnames(self) -> list[str]: ...
    def config_text(self) -> str: ...
    def all_machines(self) -> list[dict[str, Any]]: ...
    def elapsed(self) -> float: ...
    def flush_writer(self) -> None: ...
    def extra_state(self) -> dict[str, Any]: ...
    def load_extra_state(self, state: dict[str, Any]) -> None: ...


def save_resume_state(trainer: Resumable) -> None:
    """Replace OUTPUT_DIR/resume.pth.tar by the state after the epoch that just ended.

    Raises:
        ValueError: a model, scheduler or extra_state() holds something that is neither a tensor nor a plain value.
        OSError: no space left, or the folder cannot be written; the old file stays.
    """
    trainer.flush_writer()
    randoms = distributed.all_gather_object({"random": random_state(), "loaders": _loaders(trainer)})
    if distributed.is_main_process():
        config = trainer.config_text()
        state = {
            "version": VERSION,
            "epoch": trainer.epoch + 1,
            "models": {name: model.state_dict() for name, model in trainer._models.items()},
            "optims": {name: None if o is None else o.state_dict() for name, o in trainer._optims.items()},
            "scheds": {name: None if s is None else s.state_dict() for name, s in trainer._scheds.items()},
            "scaler": None if trainer.precision.scaler is None else trainer.precision.scaler.state_dict(),
            "processes": randoms,
            "machines": trainer.all_machines(),
            "best_result": float(trainer.best_result),
            "extra": trainer.extra_state(),
            "elapsed": trainer.elapsed(),
            "train_seconds": trainer.train_seconds,
            "train_images": trainer.train_images,
            "records": trainer.metrics.size(),
            "events": event_sizes(trainer.output_dir),
            "classnames": trainer.classnames(),
            "config": config,
            "config_hash": config_hash(config),
        }
        check_plain(state, "the resume state")
        recorded_write(resume_file(trainer.output_dir), lambda file: torch.save(state, file))
    distributed.barrier()


def load_resume_state(trainer: Resumable, directory: str) -> dict[str, Any]:
    """Give a trainer the weights, optimisers, schedules and counters of the resume state in `directory`.

    Returns:
        The state, whose random states `set_random_states` uses right before the next epoch.

    Raises:
        ValueError: the file is damaged, or of a run with another config, model or number of processes.
    """
    path = resume_file(directory)
    state = distributed.broadcast_object(load_checkpoint(path) if distributed.is_main_process() else None)
    if state.get("version") != VERSION:
        raise ValueError(f'"{path}" is not a resume state of version {VERSION}; delete it to train from the beginning')
    state = {"machines": [], "events": None, **state}  # of older versions
    wrong = [f"{name} is {state.get(name)!r:.40}" for name, kind in _ENTRIES.items() if not _is(state.get(name), kind)]
    machines, events = state["machines"], state["events"]
    if not (isinstance(machines, list) and all(isinstance(machine, dict) for machine in machines)):
        wrong.append(f"machines is {machines!r:.40}")
    if events is not None and not (isinstance(events, dict) and all(_is(size, int) for size in events.values())):
        wrong.append(f"events is {events!r:.40}")
    if wrong:
        raise ValueError(f'"{path}" is damaged ({", ".join(wrong)}); delete it to train from the beginning')
    if not 0 < state["epoch"] <= trainer.cfg.OPTIM.MAX_EPOCH:
        raise ValueError(
            f'"{path}" is of epoch {state["epoch"]}, but the run has {trainer.cfg.OPTIM.MAX_EPOCH} (OPTIM.MAX_EPOCH); '
            "delete it to train from the beginning"
        )
    check_same_config(state["config"], trainer.cfg, directory)
    world = distributed.get_world_size()
    if len(state["processes"]) != world:
        raise ValueError(
            f'"{path}" is of a run with {len(state["processes"])} processes, this one has {world}; use as many again'
        )
    names = list(trainer._models)
    if names != list(state["models"]):
        raise ValueError(f'"{path}" holds models {", ".join(state["models"])}, this run has {", ".join(names)}')
    now = machine_of(trainer)
    trainer.machines = machines
    if trainer.machines:
        check_same_machine(path, trainer.machines[-1], now, trainer.cfg.TRAIN.OTHER_MACHINE)
    check_classnames(path, state, trainer.classnames())
    for name, model in trainer._models.items():
        check_weights(path, model, state["models"][name])
    with _damage_named(path):
        for name, model in trainer._models.items():
            model.load_state_dict(state["models"][name])
            for own, saved in ((trainer._optims[name], state["optims"]), (trainer._scheds[name], state["scheds"])):
                if own is not None and saved[name] is not None:
                    if odd := set(saved[name]).symmetric_difference(own.state_dict()):
                        raise KeyError(f"entries {', '.join(sorted(map(str, odd)))} are missing or unknown")
                    own.load_state_dict(saved[name])
        if trainer.precision.scaler is not None and state["scaler"]:
            trainer.precision.scaler.load_state_dict(state["scaler"])
        trainer.load_extra_state(state["extra"])
    trainer.best_result = state["best_result"]
    trainer.elapsed_before = state["elapsed"]
    trainer.train_seconds, trainer.train_images = state["train_seconds"], state["train_images"]
    logger.info("Resume %s after epoch %d", path, state["epoch"])
    return state


def set_random_states(trainer: Resumable, state: dict[str, Any]) -> None:
    """Put all random generators and the positions of the training loaders where the saved run had them."""
    with _damage_named(resume_file(trainer.output_dir)):
        own = state["processes"][distributed.get_rank()]
        for name, value in own["loaders"].items():
            set_loader_state(getattr(trainer, name), value)
        set_random_state(own["random"])


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Errors of entries that do not fit become one that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as err:
        raise ValueError(
            f'"{path}" is damaged, or of another version of this code or of torch ({type(err).__name__}: '
            f"{' '.join(str(err).split())[:200]}); delete it to train from the beginning"
        ) from err


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def copy_best(trainer: Resumable, directory: str) -> None:
    """Copy the best models of another folder, so that the run that continues it can deploy them."""
    if distributed.is_main_process():
        for name in trainer._models:
            best = Path(directory) / name / BEST_MODEL
            if best.is_file():
                _copy(best, Path(trainer.output_dir) / name / BEST_MODEL)
    distributed.barrier()


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    recorded_write(target, lambda file: file.write(content))


def best_result(trainer: Resumable, directory: str) -> float:
    """Validation figure of the best models saved in a folder, -inf if there are none."""
    paths = [Path(directory) / name / BEST_MODEL for name in trainer._models]
    if not all(path.is_file() for path in paths):
        return -math.inf
    figure = read_checkpoint(paths[0]).get("val_result")
    return -math.inf if figure is None else float(figure)


def _loaders(trainer: Resumable) -> dict[str, Any]:
    names = ("train_loader_x", "train_loader_u")
    return {name: loader_state(getattr(trainer, name)) for name in names if getattr(trainer, name) is not None}
