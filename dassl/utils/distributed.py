"""More than one process: start-up from torchrun's environment and the few collective calls the engine needs.

Every function also works in a single process, where it is the identity; callers need no `if`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

__all__ = [
    "all_gather_object",
    "barrier",
    "broadcast_object",
    "gather",
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "init_distributed",
    "is_main_process",
    "mean",
    "shutdown_distributed",
]


def is_initialized() -> bool:
    """True if a process group is running."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes of this run, 1 without torchrun."""
    return dist.get_world_size() if is_initialized() else 1


def get_rank() -> int:
    """Number of this process, 0 <= rank < world size."""
    return dist.get_rank() if is_initialized() else 0


def get_local_rank() -> int:
    """Number of this process on its own machine; the GPU it uses has the same number."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_initialized() else 0


def is_main_process() -> bool:
    """True if this process writes files and prints: exactly one per run."""
    return get_rank() == 0


def init_distributed(use_cuda: bool = True) -> bool:
    """Start the process group that torchrun's environment describes.

    NCCL is used when `use_cuda` and a GPU is there, gloo otherwise. Without torchrun (no WORLD_SIZE, or 1), or when a
    group is running already, nothing happens.

    Returns:
        Whether this call started a group; the caller then ends it with `shutdown_distributed`.

    Raises:
        ValueError: WORLD_SIZE is set but the other variables of torchrun are not, or a process has no GPU to itself.
    """
    if is_initialized():
        return False
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit():
        raise ValueError(f"WORLD_SIZE is {text!r}, expected a number of processes; start the run with torchrun")
    if int(text) <= 1:
        return False
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is {text}, but {', '.join(missing)} is not set; start the run with torchrun")
    cuda = use_cuda and torch.cuda.is_available()
    if cuda:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"process {local_rank} of this machine has no GPU ({gpus} found); "
                f"start at most {gpus} processes (torchrun --nproc_per_node {gpus}) or set USE_CUDA False"
            )
        torch.cuda.set_device(local_rank)
    _start_group("nccl" if cuda else "gloo")
    return True


def _start_group(backend: str) -> None:
    """Start the group, with its own names in the launcher's store when the launcher has started this run again.

    The launcher's store lives on and still has the addresses of the processes before, which one that looks too early
    would wait for (seen with torch 2.14). On several machines the launchers do not count alike, so that nothing tells
    the starts apart there: docs/engine.md says what to set.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore(f"restart_{restart}", store), rank=rank, world_size=world)


def shutdown_distributed() -> None:
    """End the process group; does nothing when there is none."""
    if is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if get_world_size() > 1:
        dist.barrier()


def all_gather_object(value: Any) -> list[Any]:
    """One picklable value of each process, in order of rank, on every process."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The value that the main process passed in, on every process."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, on every process; every process must call it with the same shape."""
    if get_world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / get_world_size()


class _Gather(torch.autograd.Function):
    """Concatenation over processes; the gradient of a process's part is summed over the losses of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(value) for _ in range(get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(get_world_size())[get_rank()]


def gather(value: Tensor) -> Tensor:
    """Rows (B, ...) of all processes in order of rank, (B * world size, ...), with gradients.

    Every process must call it with the same shape. In the backward pass the gradients that the losses of all processes
    have at a row are summed. If the loss to minimise is the mean of the processes' losses, DistributedDataParallel,
    which averages parameter gradients, gives exactly its gradient.
    """
    if get_world_size() == 1:
        return value
    return _Gather.apply(value)
