"""Linear layers whose fp32 products take oneDNN's kernels where the default ones leave half of the processor idle."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 16  # with fewer, setting up oneDNN's product costs more than it saves

_wanted = True


def use_onednn(wanted: bool) -> None:
    """Switches oneDNN's fp32 products on (the default) or off for this process; see :func:`linear`."""
    global _wanted
    _wanted = wanted


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor on which torch's own fp32 products are slow and oneDNN's are there instead.

    They go through MKL, which keeps to AVX2 on processors by AMD. With AVX-512 (EPYC, torch 2.14, one thread) oneDNN
    makes 140 to 220 GFLOP/s of the products of ViT-B/16, MKL 90 to 100. On other processors nothing was measured.
    """
    if "AuthenticAMD" not in _processor() or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:  # an operator of torch's compiler, without a promise that it stays
        one = torch.ones(1, 1)
        return bool(_product(one, one, one[0]) == 2)
    except (AttributeError, RuntimeError):
        return False


def _processor() -> str:
    """What the system says of the processor, its maker among it."""
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else platform.processor()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (rows, i) weight (o, i)^T + bias (o,) by oneDNN: (rows, o)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if for_x else None,
            _product(grad.T, x.T) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, as ``F.linear`` to rounding.

    Products of fp32 tensors of a CPU go through oneDNN where :func:`onednn_is_faster` and `use_onednn` has not been
    switched off; everything else (other types, autocast, GPUs, tracing, few rows) is ``F.linear`` itself.

    Args:
        x: (..., i).
        weight: (o, i).
        bias: (o,), or None for none.

    Returns:
        (..., o).
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if (
        _wanted
        and not (torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and torch.backends.mkldnn.enabled
        and onednn_is_faster()
    ):
        return _OneDnnLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., i). Returns (..., o)."""
        return linear(x, self.weight, self.bias)
