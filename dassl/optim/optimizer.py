"""From the config to an optimiser."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .lamb import Lamb
from .radam import RAdam

__all__ = ["AVAI_OPTIMS", "build_optimizer"]

logger = logging.getLogger(__name__)

AVAI_OPTIMS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw", "lamb")


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: Any, param_groups: Any = None
) -> torch.optim.Optimizer:
    """The optimiser OPTIM.NAME with the rates of `optim_cfg`.

    Args:
        model: a module, whose parameters are all handed over (frozen ones have no gradient and are skipped), or
            parameters or parameter groups. With OPTIM.STAGED_LR a module: its children named in OPTIM.NEW_LAYERS learn
            with LR, everything else with LR * BASE_LR_MULT.
        optim_cfg: cfg.OPTIM.
        param_groups: used instead of the model's parameters.

    Raises:
        ValueError: unknown name, STAGED_LR without a module, or a new layer that the module does not have.
    """
    name = optim_cfg.NAME
    if name not in AVAI_OPTIMS:
        raise ValueError(f"OPTIM.NAME is {name!r}, expected one of {', '.join(AVAI_OPTIMS)}")
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            logger.warning("OPTIM.STAGED_LR is ignored because parameter groups were given")
        params = param_groups
    elif optim_cfg.STAGED_LR:
        params = _staged_groups(model, optim_cfg)
    else:
        params = model.parameters() if isinstance(model, nn.Module) else model
    params = [_listed(one) for one in params]
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    flat = [p for one in params for p in (one["params"] if isinstance(one, dict) else [one])]
    fused = True if flat and all(p.is_cuda and p.is_floating_point() for p in flat) else None  # one kernel for all
    adam: dict[str, Any] = {"betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2), "eps": optim_cfg.ADAM_EPS}
    if name == "sgd":
        return torch.optim.SGD(
            params,
            momentum=optim_cfg.MOMENTUM,
            dampening=optim_cfg.SGD_DAMPNING,
            nesterov=optim_cfg.SGD_NESTEROV,
            fused=fused,
            **common,
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(params, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common)
    if name == "radam":
        return RAdam(params, **adam, **common)
    if name == "adamw":
        return torch.optim.AdamW(params, **adam, **common, fused=fused)
    if name == "lamb":
        return Lamb(params, **adam, **common, max_norm=optim_cfg.LAMB_MAX_NORM)
    return torch.optim.Adam(params, **adam, amsgrad=name == "amsgrad", **common, fused=fused)


def _listed(group: Any) -> Any:
    """A parameter as it is, a parameter group with a list that can be read twice."""
    if not isinstance(group, dict):
        return group
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, torch.Tensor) else list(params)}


def _staged_groups(model: Any, optim_cfg: Any) -> list[dict[str, Any]]:
    """Two groups: everything outside the new layers with the smaller rate, then the new layers."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"OPTIM.STAGED_LR needs a module to find NEW_LAYERS in, got {type(model).__name__}")
    wanted = optim_cfg.NEW_LAYERS
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        logger.warning("OPTIM.NEW_LAYERS is empty, so every parameter learns with the smaller rate")
    children = dict(model.named_children())
    unknown = [layer for layer in wanted if layer not in children]
    if unknown:
        raise ValueError(
            f"OPTIM.NEW_LAYERS names {', '.join(unknown)}, but the layers of the model are {', '.join(children)}"
        )
    new = [parameter for layer in wanted for parameter in children[layer].parameters()]
    new_ids = {id(parameter) for parameter in new}
    base = [parameter for parameter in model.parameters() if id(parameter) not in new_ids]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
