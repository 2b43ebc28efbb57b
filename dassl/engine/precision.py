"""The one place that decides about numeric precision and takes an optimisation step.

| name | backbone weights | operations | loss scaling |
|------|------------------|------------|--------------|
| fp32 | float32 | float32 | no |
| fp16 | float16 | float16 autocast | yes |
| amp  | float32 | float16 autocast (bfloat16 on a CPU) | yes (not on a CPU) |
| bf16 | bfloat16 | bfloat16 autocast | no |

Learned parameters and optimiser state are float32 in every mode.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "amp", "bf16")
SMALLEST_SCALE = 2.0**-14  # below it, 30 steps in a row from the usual 2^16 had non-finite gradients


class Precision:
    """Precision of one run on one device.

    Attributes:
        name: what is really used; fp16 asked for on a CPU becomes fp32, with one warning.
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
        if name == "fp16" and on_cpu:
            logger.warning("PREC fp16 is not available on a CPU: using fp32")
            name = "fp32"
        self.name = name
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
        half = torch.bfloat16 if name == "bf16" or on_cpu else torch.float16
        self.autocast_dtype = None if name == "fp32" else half
        scaled = self.autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None

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
    ) -> None:
        """Zero the gradients, check the loss, go backward and let every optimiser step.

        Args:
            loss: scalar.
            optimizers: those that step; their gradients are set to None first.
            parameters: their gradients are checked too before any step. A run with loss scaling skips a step with
                non-finite gradients instead, as loss scaling is meant to, and stops only when it never recovers.
            terms: named scalars the loss is made of, for the message.
            where: such as "epoch 3, batch 5", for the message.

        Raises:
            FloatingPointError: loss or gradients are infinite or NaN. Nothing was changed.
        """
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        check_finite(loss, terms, where)
        if self.scaler is None:
            loss.backward()
            if parameters is not None:
                check_gradients(parameters, where)
            for optimizer in optimizers:
                optimizer.step()
            return
        self.scaler.scale(loss).backward()
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise FloatingPointError(
                f"{_at(where)}gradients are infinite or NaN in every step (PREC {self.name}, loss scale "
                f"{self.scaler.get_scale():.1e}); use PREC bf16 or fp32, or a smaller OPTIM.LR"
            )


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def check_finite(loss: Tensor, terms: Mapping[str, Tensor] | None = None, where: str = "") -> None:
    """Raise FloatingPointError that names place and terms when a loss is infinite or NaN."""
    if torch.isfinite(loss).all():
        return
    named = {name: float(term.detach()) for name, term in (terms or {}).items()}
    broken = {name: value for name, value in named.items() if not torch.isfinite(torch.tensor(value))}
    shown = ", ".join(f"{name} = {value}" for name, value in (broken or {"loss": float(loss.detach())}).items())
    raise FloatingPointError(
        f"{_at(where)}Loss is infinite or NaN! ({shown}); use a smaller OPTIM.LR, or PREC fp32, or look at the data"
    )


def check_gradients(parameters: Iterable[nn.Parameter], where: str = "") -> None:
    """Raise FloatingPointError when a gradient is infinite or NaN; one synchronisation for all parameters."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    largest = torch.stack([gradient.detach().abs().amax().float() for gradient in gradients])
    if not torch.isfinite(largest).all():
        raise FloatingPointError(
            f"{_at(where)}the loss is finite but its gradient is infinite or NaN; "
            "use a smaller OPTIM.LR, or PREC fp32, or look at the data"
        )
