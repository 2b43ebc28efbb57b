"""The state of every random generator a run draws from, as plain values that a checkpoint can hold."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of Python's random, numpy's global generator, torch on the CPU and torch on every GPU in use."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where `random_state` found them; GPU states are used as far as there are GPUs."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, values, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, values.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, value in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value.cpu(), index)


@contextlib.contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Nothing that happens inside moves a global generator: an evaluation never changes the training after it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def loader_state(loader: Any) -> dict[str, Any]:
    """State of a training loader: its state_dict if it has one, else the states of its generators."""
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return {"loader": loader.state_dict()}
    return {"generators": [generator.get_state() for generator in _generators(loader)]}


def set_loader_state(loader: Any, state: dict[str, Any]) -> None:
    """Undo of `loader_state`.

    Raises:
        ValueError: the loader is of another kind than the one whose state was saved.
    """
    if "loader" in state and hasattr(loader, "load_state_dict"):
        loader.load_state_dict(state["loader"])
        return
    generators = _generators(loader)
    saved = state.get("generators", [])
    if "loader" in state or len(generators) != len(saved):
        raise ValueError(
            f"the saved position of the training data does not fit a {type(loader).__name__} with {len(generators)} "
            "random generators; it was written by another version of the data code"
        )
    for generator, value in zip(generators, saved):
        generator.set_state(value.cpu())


def _generators(loader: Any) -> list[torch.Generator]:
    """Different torch generators that a loader and its samplers own, outermost first."""
    found: list[torch.Generator] = []
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found
