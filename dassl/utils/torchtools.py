"""Checkpoints, and small helpers for modules, under the names that Dassl users import."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checksums import check_sum, recorded_write
from .files import PathLike, write_text
from .safe_load import RefusedPickle, load_with_stand_ins, refuse_programs

__all__ = [
    "check_plain",
    "count_num_param",
    "init_network_weights",
    "is_checkpoint_folder",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

BEST_MODEL = "model-best.pth.tar"
POINTER = "checkpoint"


def save_checkpoint(
    state: dict[str, Any],
    save_dir: PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> str:
    """Write a checkpoint and the pointer file that names it; a crash leaves the old files or the new ones, whole.

    Args:
        state: needs "state_dict" and, unless `model_name` is given, "epoch" (1-based). Tensors and plain Python values
            only, so that the file can be read without running stored code.
        save_dir: folder, created if missing.
        is_best: also write model-best.pth.tar.
        remove_module_from_keys: strip the "module." that wrappers put in front of parameter names.
        model_name: file name; "model.pth.tar-<epoch>" by default.

    The pointer names the latest state to resume from: writing model-best.pth.tar sets it only if there is none yet.

    Returns:
        Path of the file written.

    Raises:
        ValueError: something in `state` is neither a tensor nor a plain value (the message says where).
        OSError: the disk is full or the folder cannot be written; what was saved before stays as it was.
    """
    check_plain(state, "state")
    if remove_module_from_keys:
        names = ((name.removeprefix("module."), value) for name, value in state["state_dict"].items())
        state = {**state, "state_dict": OrderedDict(names)}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = Path(save_dir) / name
    recorded_write(path, lambda file: torch.save(state, file))
    logger.info("Checkpoint saved to %s", path)
    pointer = Path(save_dir) / POINTER
    if name != BEST_MODEL or not pointer.exists():
        write_text(name + "\n", pointer)
    if is_best and name != BEST_MODEL:
        recorded_write(Path(save_dir) / BEST_MODEL, lambda file: torch.save(state, file))
        logger.info('Best checkpoint saved to "%s"', Path(save_dir) / BEST_MODEL)
    return str(path)


def load_checkpoint(fpath: PathLike | None) -> dict[str, Any]:
    """Read a checkpoint on the CPU without running anything stored in it.

    A file of the original Dassl holds a live scheduler object: its other entries are read and the scheduler is None.

    Raises:
        ValueError: no path, or the file is damaged, has another SHA-256 than was noted when it was written, is no
            checkpoint, or names code; the message has path and reason.
        FileNotFoundError: there is no such file.
    """
    if fpath is None:
        raise ValueError("File path is None")
    path = Path(fpath)
    if not path.is_file():
        raise FileNotFoundError(f'No file exists at "{path}"')
    check_sum(path)
    try:
        refuse_programs(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            content = load_with_stand_ins(path)
            dropped = content.pop("dropped")
            logger.warning('"%s" holds live objects: %s not read', path, ", ".join(dropped) or "nothing")
            content.update(dict.fromkeys(dropped))
    except RefusedPickle as err:
        raise ValueError(f'"{path}" is refused: {err}') from err
    except MemoryError:
        raise
    except Exception as err:  # torch and pickle report damaged files with a dozen kinds of errors
        raise ValueError(f'"{path}" cannot be read as a checkpoint: {_first_line(err)}') from err
    if not isinstance(content, dict):
        raise ValueError(f'"{path}" holds a {type(content).__name__}, expected a dictionary')
    return content


def resume_from_checkpoint(
    fdir: PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the state that the pointer file in `fdir` names into model, optimiser and scheduler.

    Returns:
        The stored epoch, which is the number of epochs done and so the (0-based) epoch to continue with.

    Raises:
        FileNotFoundError: no pointer file, or the file it names is missing.
        ValueError: the checkpoint is damaged, lacks an entry, or does not fit the model.
    """
    pointer = Path(fdir) / POINTER
    if not pointer.is_file():
        raise FileNotFoundError(f'"{fdir}" has no file "{POINTER}", so there is nothing to resume from')
    name = pointer.read_text(encoding="utf-8").strip()
    if not name or Path(name).name != name:
        raise ValueError(f'"{pointer}" holds {name!r}, expected the name of a file in the same folder')
    path = Path(fdir) / name
    logger.info('Loading checkpoint from "%s"', path)
    checkpoint = load_checkpoint(path)
    wanted = ["state_dict", "epoch"] + ["optimizer"] * (optimizer is not None) + ["scheduler"] * (scheduler is not None)
    missing = [entry for entry in wanted if checkpoint.get(entry) is None]
    if missing:
        raise ValueError(f'"{path}" cannot be resumed from: it has no {", ".join(missing)}')
    try:
        model.load_state_dict(checkpoint["state_dict"])
        logger.info("Loaded model weights")
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
            logger.info("Loaded optimizer")
        if scheduler is not None:
            scheduler.load_state_dict(checkpoint["scheduler"])
            logger.info("Loaded scheduler")
    except (RuntimeError, KeyError) as err:
        raise ValueError(f'"{path}" does not fit: {err}') from err
    logger.info("Previous epoch: %d", checkpoint["epoch"])
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: PathLike) -> None:
    """Copy from a checkpoint, or a bare state dict, the entries whose name and size match the model's.

    "module." in front of names is ignored. What is left out is listed in a warning; when nothing matches, that is the
    warning. Use `load_checkpoint` and `model.load_state_dict` where everything must match.
    """
    content = load_checkpoint(weight_path)
    stored: Mapping[str, Any] = content.get("state_dict", content)
    own = model.state_dict()
    matched: OrderedDict[str, Tensor] = OrderedDict()
    discarded = []
    for full_name, value in stored.items():
        name = full_name.removeprefix("module.")
        if name in own and isinstance(value, Tensor) and own[name].size() == value.size():
            matched[name] = value
        else:
            discarded.append(name)
    if not matched:
        logger.warning('Cannot load "%s" (no name and size matches; check the names by hand)', weight_path)
        return
    model.load_state_dict({**own, **matched})
    logger.info('Successfully loaded pretrained weights from "%s"', weight_path)
    if discarded:
        logger.warning("Layers discarded due to unmatched keys or size: %s", ", ".join(discarded))


def open_all_layers(model: nn.Module) -> None:
    """Train mode, and gradients for every parameter."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad = True


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train mode and gradients for the named children only; the others are put in eval mode and frozen.

    Raises:
        ValueError: the model has no child of that name.
    """
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    unknown = [name for name in names if name not in children]
    if unknown:
        raise ValueError(f"the model has no layer {', '.join(unknown)}; its layers are {', '.join(children)}")
    for name, child in children.items():
        child.train(name in names)
        for parameter in child.parameters():
            parameter.requires_grad = name in names


def count_num_param(model: nn.Module | None = None, params: Any = None) -> int:
    """Number of values in a model's parameters, or in `params` (a module, a tensor, tensors, or parameter groups).

    Raises:
        ValueError: both arguments are None.
    """
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("model and params must provide at least one")
    if isinstance(params, nn.Module):
        return count_num_param(params)
    if isinstance(params, Tensor):
        return params.numel()
    if isinstance(params, Mapping):
        return count_num_param(params=params["params"])
    return sum(count_num_param(params=entry) for entry in params)


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise convolutions and linear layers by `init_type` and norms to (1, 0).

    Args:
        init_type: normal (std = gain), xavier (gain), kaiming, or orthogonal (gain).

    Raises:
        ValueError: unknown init_type.
    """
    fills = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, gain=gain),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, gain=gain),
    }
    if init_type not in fills:
        raise ValueError(f"init_type is {init_type!r}, expected one of {', '.join(fills)}")
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, norms):
            if weight is not None:
                nn.init.constant_(weight, 1.0)
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            fills[init_type](weight)
        else:
            continue
        if bias is not None:
            nn.init.constant_(bias, 0.0)


def check_plain(value: Any, where: str) -> None:
    """Refuse what torch.load(weights_only=True) does not give back in every supported version of torch.

    Raises:
        ValueError: `value` holds more than tensors, numbers, texts, None, dtypes, lists, tuples and dictionaries.
    """
    if type(value).__module__ == "numpy":
        raise ValueError(f"{where} is a {type(value).__name__} of numpy; convert it to a Python number or a tensor")
    if value is None or isinstance(value, (bool, int, float, str, Tensor, torch.dtype)):
        return
    if isinstance(value, dict):
        for key, entry in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(entry, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, torch.Size):
        for index, entry in enumerate(value):
            check_plain(entry, f"{where}[{index}]")
    else:
        raise ValueError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain Python values only"
        )


def _first_line(err: BaseException) -> str:
    text = str(err).strip()
    return text.splitlines()[0] if text else type(err).__name__


def is_checkpoint_folder(fdir: PathLike) -> bool:
    """True if `fdir` has a pointer file for `resume_from_checkpoint`."""
    return os.path.isfile(Path(fdir) / POINTER)
