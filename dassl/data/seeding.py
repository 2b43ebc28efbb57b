"""Randomness of loaders: one private generator per training loader, one seed per item."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dassl.utils import distributed

__all__ = ["draw_int64", "item_seed", "kept_generators", "loader_seed", "seed_generators"]

_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd


def loader_seed(seed: int, stream: int = 0) -> int:
    """Seed of a training loader's private generator.

    Args:
        seed: cfg.SEED. When it is negative the run has no seed and torch's initial seed of the first process is used.
        stream: tells loaders of one run apart; stream 0 keeps the seed as it is.
    """
    base = seed if seed >= 0 else distributed.broadcast_object(torch.initial_seed())
    return base if stream == 0 else _mix(base, stream)


def draw_int64(generator: torch.Generator) -> int:
    """The next int64 of a generator, drawn as torch's samplers and loaders draw their seeds."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def item_seed(base_seed: int, position: int) -> int:
    """Seed in [0, 2**64) for the item at `position` of an epoch whose base seed is `base_seed`."""
    return _mix(base_seed, position)


def _mix(seed: int, number: int) -> int:
    """SplitMix64: neighbouring seeds and numbers give unrelated results."""
    value = (seed + (number + 1) * _STEP) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def seed_generators(seed: int) -> None:
    """Seed Python's random, numpy's global generator and torch's CPU generator; GPU generators are not touched."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Whatever happens inside, the three generators of `seed_generators` are afterwards as they were before."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
