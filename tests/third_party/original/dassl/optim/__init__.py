"""Optimisers and learning rates by epoch."""

import math

import torch
from torch import nn


def build_optimizer(model, optim_cfg, param_groups=None):
    name = optim_cfg.NAME
    if name not in ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"):
        raise ValueError(f"optim must be one of the known, but got {name}")
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            new = [one for layer in optim_cfg.NEW_LAYERS for one in getattr(model, layer).parameters()]
            base = [one for one in model.parameters() if not any(one is other for other in new)]
            param_groups = [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    if name == "sgd":
        steps = {"dampening": optim_cfg.SGD_DAMPNING, "nesterov": optim_cfg.SGD_NESTEROV}
        return torch.optim.SGD(param_groups, momentum=optim_cfg.MOMENTUM, **steps, **common)
    if name == "rmsprop":
        return torch.optim.RMSprop(param_groups, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common)
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    if name in ("radam", "adamw"):
        kind = torch.optim.RAdam if name == "radam" else torch.optim.AdamW
        return kind(param_groups, betas=betas, **common)
    return torch.optim.Adam(param_groups, betas=betas, amsgrad=name == "amsgrad", **common)


class _Rates(torch.optim.lr_scheduler.LRScheduler):
    """Rates of epoch 0, 1, ...: of the warm-up, then of the schedule."""

    def __init__(self, optimizer, cfg):
        self.cfg = cfg
        super().__init__(optimizer)

    def get_lr(self):
        return [self.rate(base, self.last_epoch) for base in self.base_lrs]

    def rate(self, base, epoch):
        cfg, warmup = self.cfg, max(0, self.cfg.WARMUP_EPOCH)
        if epoch < warmup:
            if cfg.WARMUP_TYPE == "constant":
                return cfg.WARMUP_CONS_LR
            return cfg.WARMUP_MIN_LR if epoch == 0 else base * epoch / warmup
        t = epoch - warmup if cfg.WARMUP_RECOUNT else epoch
        if cfg.LR_SCHEDULER == "cosine":
            return base * (1 + math.cos(math.pi * t / cfg.MAX_EPOCH)) / 2
        if cfg.LR_SCHEDULER == "multi_step":
            return base * cfg.GAMMA ** sum(step <= t for step in cfg.STEPSIZE)
        return base * cfg.GAMMA ** (t // (cfg.STEPSIZE[-1] if cfg.STEPSIZE[-1] > 0 else cfg.MAX_EPOCH))

    def state_dict(self):
        return {name: value for name, value in super().state_dict().items() if name != "cfg"}


def build_lr_scheduler(optimizer, optim_cfg):
    if optim_cfg.LR_SCHEDULER not in ("single_step", "multi_step", "cosine"):
        raise ValueError(f"scheduler must be one of the known, but got {optim_cfg.LR_SCHEDULER}")
    return _Rates(optimizer, optim_cfg)
