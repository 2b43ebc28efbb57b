"""The one place that decides about numeric precision and takes an optimisation step.

| name | backbone weights | operations | loss scaling |
|------|------------------|------------|--------------|
| fp32 | float32 | float32 | no |
| fp16 | float16 | float16 autocast | yes |
| amp  | float32 | float16 autocast (bfloat16 on a CPU) | yes (not on a CPU) |
| bf16 | bfloat16 | bfloat16 autocast | no |
| auto | on a GPU bf16 where it has instructions for it, else amp; on a CPU amp where that is faster, else fp32 | | |

Learned parameters and optimiser state are float32 in every mode.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dassl.utils import distributed

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "amp", "bf16", "auto")
SLOWER = 1.1  # times as long as fp32, from which half precision on a CPU is worth a warning
SMALLEST_SCALE = 2.0**-14  # below it, 30 steps in a row from the usual 2^16 had non-finite gradients


class GradientProjection(NamedTuple):
    """An auxiliary loss whose gradient is combined with that of the main loss without being minimized, as in ProGrad.

    Attributes:
        loss: scalar, from the same forward pass.
        combine: (gradient of the minimised loss, gradient of this loss) of one parameter, not scaled and averaged over
            processes -> the gradient to step with.
    """

    loss: Tensor
    combine: Callable[[Tensor, Tensor], Tensor]


class AccumulationStep(NamedTuple):
    """Place of a batch among those whose gradients make one step.

    Attributes:
        first: the gradients of earlier steps are cleared before it.
        last: the optimisers step after it.
        share: of its loss in the loss of the step.
    """

    first: bool = True
    last: bool = True
    share: float = 1.0


WHOLE = AccumulationStep()
"""A step of one batch."""


class Scaler(torch.amp.GradScaler):
    """torch's gradient scaler for a step that knows already whether its gradients are `finite`, and need not wait."""

    finite = True

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Step unless the unscaled gradients are infinite or NaN."""
        return optimizer.step(*args, **kwargs) if self.finite else None


def cpu_has_bfloat16() -> bool:
    """True if this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX), as far as torch can tell."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def auto_precision(device: torch.device) -> str:
    """Name of the precision that PREC auto stands for on a device.

    On a GPU bf16 where it has the instructions (NVIDIA from compute capability 8.0), else amp: float16, with a scaler.
    On a CPU amp if it is faster there, else fp32.
    """
    if device.type == "cuda":
        return "bf16" if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0) else "amp"
    return "amp" if cpu_has_bfloat16() and half_cost() < 1 else "fp32"


@functools.cache
def half_cost() -> float:
    """Time of a linear layer's training step in bfloat16 autocast on the CPU, as a multiple of its time in float32.

    The best of up to 5 of each, in turn, so that other work on the machine disturbs both alike; once per process, for
    half a second at most after the first turn.
    """
    until = time.perf_counter() + 0.5
    layer = nn.Linear(384, 384)
    rows = torch.ones(197, 384)
    best = {True: float("inf"), False: float("inf")}
    for turn in range(6):  # the first is a warm-up
        if turn > 1 and time.perf_counter() > until:
            break
        for half in best:
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = layer(rows).sum()
            torch.autograd.grad(loss, list(layer.parameters()))
            best[half] = min(best[half], time.perf_counter() - start) if turn else float("inf")
    return best[True] / best[False]


class Precision:
    """Precision of one run on one device.

    Attributes:
        name: what is really used; fp16 asked for on a CPU becomes fp32, with one warning, and auto what it finds.
        dtype: type of the frozen backbone's weights.
        scaler: the gradient scaler of fp16 and amp on a GPU, else None.

    Raises:
        ValueError: unknown name.
    """

    def __init__(self, name: str, device: torch.device | str):
        if name not in PRECISIONS:
            raise ValueError(f"precision is {name!r}, expected one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        if name == "auto":
            name = auto_precision(self.device)
        if name in ("amp", "bf16") and on_cpu and half_cost() > SLOWER:
            logger.warning(
                "PREC %s is slow on this processor%s: a linear layer takes %.2g times as long here as with PREC fp32. "
                "PREC auto chooses the faster one",
                *(name, "" if cpu_has_bfloat16() else ", which has no instructions for bfloat16", half_cost()),
            )
        if name == "fp16" and on_cpu:
            logger.warning("PREC fp16 is not available on a CPU: using fp32")
            name = "fp32"
        self.name = name
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
        half = torch.bfloat16 if name == "bf16" or on_cpu else torch.float16
        self.autocast_dtype = None if name == "fp32" else half
        scaled = self.autocast_dtype == torch.float16
        self.scaler = Scaler(self.device.type) if scaled else None

    def __repr__(self) -> str:
        return f"Precision({self.name}, {self.device})"

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context for every forward pass; does nothing in fp32."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def step(
        self,
        loss: Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Iterable[nn.Parameter] | None = None,
        terms: Mapping[str, Tensor] | None = None,
        where: str = "",
        projection: GradientProjection | None = None,
        part: AccumulationStep = WHOLE,
        metrics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Zero the gradients, go backward, check loss and gradients and let every optimiser step.

        The host waits for a device once, when the backward pass is on its way, and reads everything in one copy.

        Args:
            loss: scalar.
            optimizers: those that step; their gradients are set to None first.
            parameters: their gradients are checked too before any step. A run with loss scaling skips a step with
                non-finite gradients instead, as loss scaling is meant to, and stops only when it never recovers.
            terms: named scalars the loss is made of, for the message and the result.
            where: such as "epoch 3, batch 5", for the message.
            projection: a second loss, and how its gradients and those of `loss` make the step; both are checked.
            part: the place of this loss in a step that several batches make; gradients are checked with the last.
            metrics: scalars for the result alone.

        Returns:
            Values of `loss`, the terms and the metrics by name.

        Raises:
            FloatingPointError: loss or gradients are infinite or NaN. No parameter was changed.
            ValueError: a steered step of several batches.
        """
        if projection is not None and part != WHOLE:
            raise ValueError("gradient projection works on the step of one batch: set OPTIM.ACCUMULATE 1")
        if part.first:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
        guides: list[tuple[nn.Parameter, Tensor]] = []
        if projection is None:
            self._scaled(loss if part.share == 1 else part.share * loss).backward()
        else:
            guides = self._guided_backward(loss, projection.loss, optimizers)
        checked: list[Tensor] = []
        if part.last:
            if self.scaler is not None:
                for optimizer in optimizers:
                    self.scaler.unscale_(optimizer)
                parameters = [
                    p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
                ]
            checked = largest_gradient(parameters or ())
        terms, metrics = terms or {}, metrics or {}
        bends = [] if projection is None else [projection.loss]
        read = [loss, *terms.values(), *metrics.values(), *bends, *checked]
        numbers = torch.stack([value.detach().float() for value in read]).tolist()
        found = dict(zip(("loss", *terms, *metrics), numbers))
        named = {name: found[name] for name in terms}
        raise_unless_finite(numbers[0], named, where)
        if bends:
            raise_unless_finite(numbers[len(found)], {}, where)
        if not part.last:
            return found
        finite = not checked or math.isfinite(numbers[-1])
        if not finite and self.scaler is None:
            raise FloatingPointError(
                f"{_at(where)}the loss is finite but its gradient is infinite or NaN; "
                "use a smaller OPTIM.LR, or PREC fp32, or look at the data"
            )
        for parameter, guide in guides:
            assert projection is not None
            assert parameter.grad is not None
            parameter.grad = projection.combine(parameter.grad, guide)
        if self.scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return found
        self.scaler.finite = finite
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if not finite and (scale := self.scaler.get_scale()) < SMALLEST_SCALE:
            raise FloatingPointError(
                f"{_at(where)}gradients are infinite or NaN in every step (PREC {self.name}, loss scale {scale:.1e}); "
                "use PREC bf16 or fp32, or a smaller OPTIM.LR"
            )
        return found

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _guided_backward(
        self, loss: Tensor, guide: Tensor, optimizers: Sequence[torch.optim.Optimizer]
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """Sets the (scaled) gradients of `loss` and returns those of the projection, not scaled, per parameter.

        Two backward passes through one forward pass are more than DistributedDataParallel allows, so gradients are
        taken without its hooks and averaged here. A gradient of `loss` becomes NaN where that of the projection is not
        finite, so that the check of the first is the check of both.
        """
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"] if p.requires_grad]
        second = torch.autograd.grad(self._scaled(guide), parameters, retain_graph=True, allow_unused=True)
        first = torch.autograd.grad(self._scaled(loss), parameters, allow_unused=True)
        scale = self._scaled(loss.new_ones(()))
        guides = []
        for parameter, gradient, guide in zip(parameters, first, second):
            if gradient is None and guide is None:
                continue
            gradient = torch.zeros_like(parameter) if gradient is None else distributed.mean(gradient)
            guide = torch.zeros_like(parameter) if guide is None else distributed.mean(guide)
            parameter.grad = torch.where(torch.isfinite(guide).all(), gradient, torch.nan)
            guides.append((parameter, guide / scale))
        return guides


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def check_finite(loss: Tensor, terms: Mapping[str, Tensor] | None = None, where: str = "") -> None:
    """Raise FloatingPointError that names place and terms when a loss is infinite or NaN."""
    values = torch.stack([value.detach().float() for value in (loss, *(terms or {}).values())]).tolist()
    raise_unless_finite(values[0], dict(zip(terms or {}, values[1:])), where)


def raise_unless_finite(loss: float, terms: Mapping[str, float], where: str) -> None:
    """`check_finite` for values that were read."""
    if math.isfinite(loss):
        return
    broken = {name: value for name, value in terms.items() if not math.isfinite(value)}
    shown = ", ".join(f"{name} = {value}" for name, value in (broken or {"loss": loss}).items())
    raise FloatingPointError(
        f"{_at(where)}Loss is infinite or NaN! ({shown}); use a smaller OPTIM.LR, or PREC fp32, or look at the data"
    )


def largest_gradient(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """[Largest absolute value of all gradients], infinite or NaN where one is; empty without any."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return []
    return [torch.stack([gradient.detach().abs().amax().float() for gradient in gradients]).amax()]
