"""Batches that are on their way to a GPU while it still computes with the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def prefetched(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """`batches` in their order, with the images of the next one copied to a GPU on a stream of their own.

    Every batch is read one step before it is needed; on a CPU they are passed on as they come. The generators of a
    loader draw the same, and what is computed is the same.

    Args:
        batches: dictionaries of which the floating-point tensors, alone or in lists, are moved; labels and texts stay,
            and so does a batch that is no dictionary.
        device: of the computation.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies, waiting = torch.cuda.Stream(device), []
    for batch in batches:
        moved: list[Tensor] = []
        with torch.cuda.stream(copies):
            batch = _on_device(batch, device, moved)
            waiting.append((batch, moved, copies.record_event()))
        if len(waiting) > 1:
            yield _ready(*waiting.pop(0), device)
    for entry in waiting:
        yield _ready(*entry, device)


def _on_device(value: Any, device: torch.device, moved: list[Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {key: _on_device(one, device, moved) for key, one in value.items()}
    if type(value) in (list, tuple):
        return [_on_device(one, device, moved) for one in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.device.type == "cpu":
        value = value.to(device, non_blocking=True)
        moved.append(value)
    return value


def _ready(batch: Any, moved: list[Tensor], copied: torch.cuda.Event, device: torch.device) -> Any:
    """The batch once the stream of the computation, not the host, waits for its copy and keeps its memory."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for tensor in moved:
        tensor.record_stream(stream)
    return batch
