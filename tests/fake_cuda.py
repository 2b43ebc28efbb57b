"""A pretended CUDA device for machines without one: `with FakeCuda() as gpu:`.

Tensors on it compute on the CPU and say `cuda:0`. As on a GPU, tensors of different devices do not mix, `.numpy()` is
refused, and whatever makes the host wait for the device is counted in `gpu.waits`, with the line that did it: reading a
value, results whose size depends on values, and copies that block. Autocast is the CPU's, which has another list of
operations but the same types; autograd runs on the host's thread.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[1]
aten = torch.ops.aten

WAITS = {
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim),
    *(aten.unique_consecutive, aten.bincount, aten.histc, aten.is_nonzero),
}
"""Operations whose result is known to the host or has a size that depends on values."""
MASKED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operations that wait when an index is a mask."""


class CudaTensor(Tensor):
    """A tensor that says it is on cuda:0; `host` holds its values."""

    host: Tensor
    gpu: FakeCuda
    copied_on: Stream | None = None
    recorded: list[Stream]

    @staticmethod
    def __new__(cls, host: Tensor, gpu: FakeCuda) -> CudaTensor:
        made = Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype
        )
        made.host, made.gpu, made.recorded = host, gpu, []
        return made

    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.host!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():  # results are what dispatch makes
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        gpu = next(x.gpu for x in tree_leaves((args, kwargs)) if isinstance(x, CudaTensor))
        return gpu.compute(func, args, kwargs)


class Stream:
    """A queue of copies; its events know those that were asked for before."""

    def __init__(self, _device: Any = None) -> None:
        self.copies: list[CudaTensor] = []

    def record_event(self) -> list[CudaTensor]:
        return list(self.copies)

    def wait_event(self, event: list[CudaTensor]) -> None:
        for tensor in event:
            tensor.copied_on = None


def on_host(value: Any) -> Any:
    """`value` with the host's tensors in the place of those on the device."""
    return tree_map(lambda x: x.host if isinstance(x, CudaTensor) else x, value)


class FakeCuda(TorchFunctionMode):
    """The device; active inside a `with` block. `waits` lists the places in this project where the host waited.

    What was copied on a stream of its own must not be used before the stream of the computation has waited for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.stream = self.main = Stream()  # of the computation, unless another one is chosen

    def __enter__(self):
        autocast, event = torch.autocast, mock.Mock()

        def cpu_autocast(device_type: str, *args: Any, **kwargs: Any):
            return autocast("cpu", *args, **kwargs)

        @contextlib.contextmanager
        def on_stream(stream: Stream):
            before, self.stream = self.stream, stream
            try:
                yield
            finally:
                self.stream = before

        self.patches = [
            mock.patch.object(torch.cuda, "Stream", Stream),
            mock.patch.object(torch.cuda, "stream", on_stream),
            mock.patch.object(torch.cuda, "current_stream", side_effect=lambda device=None: self.stream),
            mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: tensor.recorded.append(stream)),
            mock.patch.object(torch, "autocast", cpu_autocast),
            mock.patch.object(torch.cuda, "is_available", return_value=True),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
            mock.patch.object(torch.cuda, "Event", return_value=event),
            mock.patch.object(torch.Tensor, "pin_memory", lambda self: self),
            mock.patch.object(torch.accelerator, "current_accelerator", return_value=None),
        ]
        for patch in self.patches:
            patch.start()
        self.swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # as `.data = ` does on real devices
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        torch.__future__.set_swap_module_params_on_conversion(self.swaps)
        for patch in self.patches:
            patch.stop()

    def wait(self, why: str) -> None:
        """Count one wait of the host."""
        own = [f for f in traceback.extract_stack() if ROOT in Path(f.filename).parents and ".venv" not in f.filename]
        frame = next((f for f in reversed(own) if f.filename != __file__), None)
        where = f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}" if frame else "?"
        self.waits.append(f"{why} at {where}")

    # what Python code asks of tensors and devices

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = (resolve_name(func) or "").rpartition(".")[2] or getattr(func, "__name__", "")
        ours = args and isinstance(args[0], CudaTensor)
        if ours and name in ("tolist", "cpu"):
            self.wait(name)
            return args[0].host.tolist() if name == "tolist" else self.to_host(args[0])
        if ours and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if name == "cuda" and isinstance(args[0], Tensor):
            return self.move(args[0], "cuda", bool(kwargs.get("non_blocking", False)))
        if name == "to" and isinstance(args[0], Tensor):
            return self.to(*args, **kwargs)
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            if name in ("tensor", "as_tensor"):
                self.wait(name)  # a copy from pageable memory
            made = func(*args, **{**kwargs, "device": "cpu"})
            return CudaTensor(made.detach(), self).requires_grad_(made.requires_grad)
        if name == "__set__" and getattr(func, "__self__", None) is Tensor.data and ours:
            func(*args)
            args[0].host = args[1].host
            return None
        if kwargs.pop("pin_memory", False):
            assert not ours, "only memory of the host can be pinned"
        return func(*args, **kwargs)

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to` in all its forms."""
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args, kwargs = args[1:], {**kwargs, "device": args[0].device, "dtype": args[0].dtype}
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        moved = self.move(tensor, tensor.device.type if device is None else device.type, non_blocking)
        more = {} if layout is None else {"memory_format": layout}
        with torch._C.DisableTorchFunction():
            return Tensor.to(moved, dtype or moved.dtype, copy=copy and moved is tensor, **more)

    def move(self, tensor: Tensor, target: str, non_blocking: bool) -> Tensor:
        if tensor.device.type == target:
            return tensor
        if not non_blocking:
            self.wait(f"copy to {target}")
        if target != "cuda":
            return self.to_host(tensor)
        moved = self.to_device(tensor)
        if self.stream is not self.main:
            moved.copied_on = self.stream
            self.stream.copies.append(moved)
        return moved

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, CudaTensor) else _ToDevice.apply(tensor, self)

    def to_host(self, tensor: Tensor) -> Tensor:
        return _ToHost.apply(tensor, self) if isinstance(tensor, CudaTensor) else tensor

    # what is computed

    def compute(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One operation with at least one tensor on the device."""
        packet = func.overloadpacket
        if packet is aten.copy_:
            return self.copy_(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(getattr(x, "copied_on", None) not in (None, self.stream) for x in tensors):
            raise RuntimeError(f"{func} uses what another stream copies and nobody waited for")
        strangers = [x for x in tensors if not isinstance(x, CudaTensor) and x.dim() > 0]
        indices = [x for x in args[1] if x is not None] if packet in MASKED else []
        if strangers and not all(any(x is index for index in indices) for x in strangers):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {func}")
        if strangers:
            self.wait("an index on the host")
        if packet in WAITS or any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            self.wait(str(packet).removeprefix("aten."))
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        if torch.device(kwargs.get("device") or "cuda").type == "cuda" or packet is not aten._to_copy:
            kwargs = {key: "cpu" if key == "device" and value else value for key, value in kwargs.items()}
        known = {id(x.host): x for x in tensors if isinstance(x, CudaTensor)}
        found = func(*on_host(args), **on_host(kwargs))
        return tree_map(lambda x: self.of(x, known), found)

    def of(self, value: Any, known: dict[int, Tensor]) -> Any:
        """A result on the device; the tensor of the arguments that it is, where the operation works in place."""
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else CudaTensor(value, self)

    def copy_(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking and isinstance(target, CudaTensor) != isinstance(source, CudaTensor) and source.dim() > 0:
            self.wait("copy_")
        on_host(target).copy_(on_host(source))
        return target


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, gpu: FakeCuda) -> Tensor:
        return CudaTensor(tensor.detach().clone(), gpu)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return on_host(grads[0]), None


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: CudaTensor, gpu: FakeCuda) -> Tensor:
        ctx.gpu = gpu
        return tensor.host.detach().clone()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return CudaTensor(grads[0], ctx.gpu), None
