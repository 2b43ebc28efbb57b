"""LAMB: Adam's direction with a step proportional to the size of the layer (You et al., 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Lamb"]


class Lamb(torch.optim.Optimizer):
    """For each parameter x with Adam's bias-corrected moments m and v:

        u = m / (sqrt(v) + eps) + weight_decay * x,    x <- x - lr * |x| / |u| * u

    The ratio is 1 where |x| or |u| is 0, and for parameters without weight decay (biases, norms), whose sizes say
    nothing about a useful step; the paper adapts those too (`adapt_all`).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        weight_decay: lambda of the paper, inside the adapted step.
        max_norm: the gradient of all groups together is scaled down to this norm if it is longer; 0 leaves it.
        adapt_all: adapt parameters without weight decay too.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
        adapt_all: bool = False,
    ):
        ranges = {"lr": lr >= 0, "eps": eps >= 0, "weight_decay": weight_decay >= 0, "max_norm": max_norm >= 0}
        ranges["betas"] = all(0 <= beta < 1 for beta in betas)
        for name, holds in ranges.items():
            if not holds:
                raise ValueError(f"{name} of LAMB is {locals()[name]}, expected at least 0 (betas below 1)")
        self.max_norm = max_norm
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt_all": adapt_all}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shrink = self._shrink()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad if shrink is None else parameter.grad * shrink.to(parameter.device)
                    self._update(parameter, gradient, group)
        return loss

    def _shrink(self) -> Tensor | None:
        """Factor in (0, 1] that brings the norm of the whole gradient to at most max_norm."""
        if self.max_norm == 0:
            return None
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return None
        norms = torch._foreach_norm(gradients)
        total = torch.stack([norm.float().to(norms[0].device) for norm in norms]).norm()
        return (self.max_norm / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1.0)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = (first / (1 - beta1**step)).div_(root).add_(parameter, alpha=group["weight_decay"])
        if group["weight_decay"] > 0 or group["adapt_all"]:
            size, length = parameter.norm(), update.norm()
            update *= torch.where((size > 0) & (length > 0), size / length, 1.0)
        parameter.sub_(update, alpha=group["lr"])
