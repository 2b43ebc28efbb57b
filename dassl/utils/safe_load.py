"""Read checkpoints of the original Dassl without running anything that is stored in them.

Such a file is a pickle whose `scheduler` entry holds live torch and Dassl objects, which torch.load(weights_only=True)
refuses. Here every class of an optimiser or a scheduler becomes an inert stand-in, tensors and basic containers are
built, and anything else is refused by its name: no function outside the short list below is ever looked up, so none is
called.
"""

from __future__ import annotations

import collections
import functools
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import torch
import torch._utils

__all__ = ["RefusedPickle", "StandIn", "load_with_stand_ins", "refuse_programs"]

# What a checkpoint may name, besides the storage classes that torch resolves itself. Nothing here runs foreign code.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_INERT_PACKAGES = ("torch.optim", "dassl.optim")


class RefusedPickle(ValueError):
    """The file names something that a checkpoint has no business to hold."""


class StandIn:
    """Takes the place of an optimiser or scheduler object; keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if (module, name) == ("collections", "Counter"):  # of a scheduler; a class of Python's own could be changed
            return type("Counter", (dict,), {})
        if (module, name) in _ALLOWED:
            found = _ALLOWED[module, name]
            # A pickle can set attributes of what it is given: functions are handed out in a fresh wrapper.
            return found if isinstance(found, type) else functools.partial(found)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "copyreg" and name == "_reconstructor":
            return _rebuild_stand_in
        inert = any(module == package or module.startswith(package + ".") for package in _INERT_PACKAGES)
        if inert and name.isidentifier() and name.lstrip("_")[:1].isupper():
            return type(name, (StandIn,), {})
        raise RefusedPickle(f"it names {module}.{name}, which no checkpoint needs")


def _rebuild_stand_in(cls: Any, base: Any, state: Any) -> StandIn:
    if not (isinstance(cls, type) and issubclass(cls, StandIn)):
        raise RefusedPickle(f"it rebuilds an object of {cls!r}")
    return cls()


def _restricted_pickle() -> ModuleType:
    module = ModuleType("restricted_pickle")
    module.Unpickler = _RestrictedUnpickler  # type: ignore[attr-defined]
    module.load = lambda file, **options: _RestrictedUnpickler(file, **options).load()  # type: ignore[attr-defined]
    return module


def load_with_stand_ins(path: Path) -> dict[str, Any]:
    """Read the checkpoint at `path` on the CPU and drop every top-level entry that holds a stand-in.

    Returns:
        The remaining entries (`state_dict`, `epoch`, usually `optimizer` and `val_result`) and under "dropped" the
        names of those left out.

    Raises:
        RefusedPickle: the file names anything but tensors, basic types, optimisers and schedulers.
        Exception: whatever torch raises for a damaged file; the caller words it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_restricted_pickle())
    if not isinstance(content, dict):
        raise RefusedPickle(f"it holds a {type(content).__name__}, expected a dictionary")
    kept = {name: value for name, value in content.items() if not _holds_stand_in(value)}
    kept["dropped"] = [name for name in content if name not in kept]
    return kept


def refuse_programs(path: Path) -> None:
    """RefusedPickle for archives that torch.load would unpack or run: TorchScript programs and tar files."""
    if tarfile.is_tarfile(path):
        raise RefusedPickle("it is a tar archive, not a checkpoint")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist()):
                raise RefusedPickle("it is a TorchScript archive (a program), not a checkpoint")


def _holds_stand_in(value: Any) -> bool:
    if isinstance(value, StandIn) or (isinstance(value, type) and issubclass(value, StandIn)):
        return True
    if isinstance(value, dict):
        return any(_holds_stand_in(entry) for pair in value.items() for entry in pair)
    if isinstance(value, (list, tuple, set)):
        return any(_holds_stand_in(entry) for entry in value)
    return False
