"""Find, read and check the checkpoints of registered models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl.utils import load_checkpoint
from dassl.utils.torchtools import BEST_MODEL, POINTER

_SHOWN = 3  # examples per kind of error in a message


def checkpoint_file(directory: str, name: str, epoch: int | None) -> Path:
    """DIRECTORY/name/model.pth.tar-<epoch>, or model-best.pth.tar for None.

    Raises:
        FileNotFoundError: it is not there; the message lists the checkpoints that are.
    """
    folder = Path(directory) / name
    path = folder / (BEST_MODEL if epoch is None else f"model.pth.tar-{epoch}")
    if path.is_file():
        return path
    if not Path(directory).is_dir():
        raise FileNotFoundError(f'there is no folder "{directory}" to load a model from')
    there = sorted(file.name for file in folder.glob("model*.pth.tar*")) if folder.is_dir() else []
    if there:
        hint = f"the folder has {', '.join(there)}; choose one with --load-epoch (a number, or last)"
    else:
        others = sorted(entry.name for entry in Path(directory).iterdir() if (entry / POINTER).is_file())
        hint = f"the models saved in {directory} are: {', '.join(others) or 'none'}"
    raise FileNotFoundError(f'there is no checkpoint "{path}"; {hint}')


def last_epoch(directory: str) -> int:
    """Number of the latest epoch file that a run left in DIRECTORY, the same for all its models.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the models of the run were last saved at different epochs.
    """
    epochs: set[int] = set()
    for folder in sorted(path.parent for path in Path(directory).glob("*/" + POINTER)):
        found = [re.fullmatch(r"model\.pth\.tar-(\d+)", file.name) for file in folder.iterdir()]
        numbers = [int(match[1]) for match in found if match]
        if numbers:
            epochs.add(max(numbers))
    if not epochs:
        raise FileNotFoundError(
            f'there is no checkpoint <model>/model.pth.tar-<epoch> in "{directory}": train there first'
        )
    if len(epochs) > 1:
        raise ValueError(
            f'the models in "{directory}" were last saved at epochs {sorted(epochs)}; give --load-epoch a number'
        )
    return epochs.pop()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running stored code and check that it has weights and an epoch.

    Raises:
        ValueError: damaged, hostile, or not a checkpoint of this layout.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint.get("state_dict")
    tensors = isinstance(weights, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
    if not tensors or not isinstance(checkpoint.get("epoch"), int):
        raise ValueError(
            f'"{path}" is not a checkpoint of a trainer: expected entries state_dict (names to tensors) and epoch, '
            f"found {', '.join(map(str, checkpoint)) or 'nothing'}"
        )
    return checkpoint


def check_classnames(path: Path, checkpoint: Mapping[str, Any], classnames: list[str]) -> None:
    """Check that a checkpoint was trained on these classes, in this order; one without class names is let through.

    Raises:
        ValueError: other classes.
    """
    stored = checkpoint.get("classnames")
    if stored is not None and not (isinstance(stored, (list, tuple)) and all(isinstance(name, str) for name in stored)):
        raise ValueError(f'"{path}" is damaged: its classnames are {stored!r:.50}, expected a list of names')
    if not stored or not classnames or list(stored) == classnames:
        return
    if len(stored) != len(classnames):
        difference = f"{len(stored)} classes in the file, {len(classnames)} in this data set"
    else:
        index = next(i for i, (a, b) in enumerate(zip(stored, classnames)) if a != b)
        difference = f"class {index} is {stored[index]!r} in the file and {classnames[index]!r} in this data set"
    raise ValueError(
        f'"{path}" was trained on other classes ({difference}), and what this method learns belongs to its classes; '
        "evaluate on the classes of training, or use a method or option that is not class-specific"
    )


def check_weights(path: Path, model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Check that every name and every shape of the weights in a file is the model's.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; the message shows a few of each.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unknown = [name for name in state_dict if name not in own]
    shapes = [
        f"{name}: {tuple(state_dict[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    types = [
        f"{name}: {state_dict[name].dtype} ({_kind(state_dict[name])}) in the file, {value.dtype} in the model"
        for name, value in own.items()
        if name in state_dict and _kind(state_dict[name]) != _kind(value)
    ]
    problems = [
        f"{kind}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("other shape", shapes), ("other type", types))
        if names
    ]
    if problems:
        raise ValueError(
            f'"{path}" does not fit this model ({"; ".join(problems)}); '
            "is it of another method, backbone or prompt length?"
        )


def _kind(value: Tensor) -> str:
    """Types that may be loaded into each other: numbers of the same kind, stored densely."""
    if value.layout != torch.strided or value.device.type == "meta":
        return "no dense values"
    return "complex" if value.is_complex() else "floating point" if value.is_floating_point() else "integer"
