"""Arguments of transport: choices, precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def check_choices(**found: tuple[str, Iterable[str]]) -> None:
    """Values by name with what is allowed. Raises ValueError."""
    for name, (value, allowed) in found.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """`function` of tensors, the first of which says the device, with autocast off."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if not torch.amp.is_autocast_available(first.device.type):  # such as meta
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()
