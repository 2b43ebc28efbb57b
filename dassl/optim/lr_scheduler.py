"""Learning rates by epoch: step and cosine schedules, optionally after a warm-up; cosine and linear ones by batch.

With a constant warm-up of W epochs, RECOUNT and the cosine schedule over T = MAX_EPOCH epochs, epoch e = 1, 2, ...
learns with CONS_LR while e <= W, then with LR * (1 + cos(pi * (e - W - 1) / T)) / 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

__all__ = [
    "AVAI_SCHEDS",
    "BATCH_SCHEDS",
    "BatchCosine",
    "BatchLinear",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
]

AVAI_SCHEDS = ("single_step", "multi_step", "cosine", "batch_cosine", "batch_linear")


class _BaseWarmupScheduler(LRScheduler):
    """Sets the rates itself for `warmup_epoch` epochs and steps `successor` from then on.

    Its state is plain numbers, with the successor's state inside; loading it also sets the optimiser's rates, so that a
    resumed run has exactly the rates of an uninterrupted one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, successor: Any, warmup_epoch: int, last_epoch: int = -1):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step() if epoch is None else self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        elif epoch is None:
            super().step()
        else:
            super().step(epoch)

    def get_lr(self) -> list[Any]:
        """Rates of the epoch `last_epoch` (counted from 0), one per parameter group."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return self.warmup_lr()

    def warmup_lr(self) -> list[Any]:
        """Rates during the warm-up."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""
        return {
            "last_epoch": self.last_epoch,
            "last_lr": [float(rate) for rate in self._last_lr],
            "step_count": self._step_count,
            "successor": self.successor.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; KeyError if it lacks an entry, ValueError if the number of rates differs."""
        rates = state_dict["last_lr"]
        groups = self.optimizer.param_groups
        if len(rates) != len(groups):
            raise ValueError(f"the scheduler state has {len(rates)} learning rates for {len(groups)} parameter groups")
        self.successor.load_state_dict(state_dict["successor"])
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["step_count"]
        self._last_lr = list(rates)
        for group, rate in zip(groups, rates):
            group["lr"] = rate


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """`cons_lr` for `warmup_epoch` epochs, then `successor`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: Any,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[Any]:
        """cons_lr for every group."""
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """`min_lr` in the first epoch, then the base rate times (e - 1) / warmup_epoch in epoch e, then `successor`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: Any,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[Any]:
        """The rates of this epoch."""
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [rate * self.last_epoch / self.warmup_epoch for rate in self.base_lrs]


class BatchCosine(LRScheduler):
    """Stepped after every batch: linear from `start` to the base rate in `warmup` steps, then half a cosine to `end`.

    Batch t = 0, 1, ... of `total` learns with start + (lr - start) * t / warmup while t < warmup, then with
    end + (lr - end) * (1 + cos(pi * (t - warmup) / (total - warmup))) / 2. A group whose base rate is a share of `lr`
    has that share of these rates at every step.

    Raises:
        ValueError: the warm-up is as long as the training, or longer.
    """

    by_batch = True

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, total: int, warmup: int, start: float, end: float):
        if not 0 <= warmup < total:
            raise ValueError(f"a warm-up of {warmup} batches (OPTIM.WARMUP_EPOCH) does not fit into {total} batches")
        self.lr, self.total, self.warmup, self.start, self.end = lr, total, warmup, start, end
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Rates of the batch `last_epoch` (counted from 0), one per parameter group."""
        batch = min(self.last_epoch, self.total)
        if batch < self.warmup:
            rate = self.start + (self.lr - self.start) * batch / self.warmup
        else:
            rate = self.end + (self.lr - self.end) * self.left((batch - self.warmup) / (self.total - self.warmup))
        return [base / self.lr * rate for base in self.base_lrs]

    def left(self, done: float) -> float:
        """Share of the way from lr to end that is left when a share `done` of the batches is done, both in [0, 1]."""
        return (1 + math.cos(math.pi * done)) / 2


class BatchLinear(BatchCosine):
    """As BatchCosine, with a straight line to `end`."""

    def left(self, done: float) -> float:
        return 1 - done


BATCH_SCHEDS = {"batch_cosine": BatchCosine, "batch_linear": BatchLinear}
"""Schedules that are stepped after every batch."""


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: Any, batches: int | None = None) -> Any:
    """The schedule OPTIM.LR_SCHEDULER, stepped once per epoch, after a warm-up if OPTIM.WARMUP_EPOCH > 0.

    single_step multiplies by GAMMA every STEPSIZE[-1] epochs (MAX_EPOCH if that is below 1), multi_step at each epoch
    of STEPSIZE, cosine goes to 0 over MAX_EPOCH epochs. With WARMUP_RECOUNT the schedule starts after the warm-up,
    without it the epochs of the warm-up count. batch_cosine is stepped after every batch (`BatchCosine`), with a linear
    warm-up from WARMUP_MIN_LR whose epochs count, and ends at FINAL_LR; batch_linear likewise.

    Args:
        optimizer: its rates are set.
        optim_cfg: cfg.OPTIM.
        batches: batches per epoch, which the schedules by batch need.

    Raises:
        ValueError: unknown schedule or warm-up type, a STEPSIZE that is not a list of integers, or a trainer that
            does not step its schedule by batch.
    """
    name, stepsize = optim_cfg.LR_SCHEDULER, optim_cfg.STEPSIZE
    if name not in AVAI_SCHEDS:
        raise ValueError(f"OPTIM.LR_SCHEDULER is {name!r}, expected one of {', '.join(AVAI_SCHEDS)}")
    if name in BATCH_SCHEDS:
        if batches is None:
            raise ValueError(f"OPTIM.LR_SCHEDULER is {name!r}, but this trainer steps its schedule by epoch")
        warmup = max(0, optim_cfg.WARMUP_EPOCH)
        if warmup and optim_cfg.WARMUP_TYPE != "linear":
            raise ValueError(f"OPTIM.WARMUP_TYPE is {optim_cfg.WARMUP_TYPE!r}, {name} has a linear warm-up only")
        ends = {"start": optim_cfg.WARMUP_MIN_LR, "end": optim_cfg.FINAL_LR}
        return BATCH_SCHEDS[name](optimizer, optim_cfg.LR, optim_cfg.MAX_EPOCH * batches, warmup * batches, **ends)
    steps = [stepsize] if isinstance(stepsize, int) else list(stepsize)
    if name != "cosine" and (not steps or not all(type(step) is int for step in steps)):
        raise ValueError(f"OPTIM.STEPSIZE is {stepsize!r}, expected at least one integer")
    scheduler: Any
    if name == "single_step":
        scheduler = StepLR(
            optimizer, step_size=steps[-1] if steps[-1] > 0 else optim_cfg.MAX_EPOCH, gamma=optim_cfg.GAMMA
        )
    elif name == "multi_step":
        scheduler = MultiStepLR(optimizer, milestones=steps, gamma=optim_cfg.GAMMA)
    else:
        scheduler = CosineAnnealingLR(optimizer, optim_cfg.MAX_EPOCH)
    epochs = optim_cfg.WARMUP_EPOCH
    if epochs <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = epochs
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_MIN_LR)
    raise ValueError(f"OPTIM.WARMUP_TYPE is {optim_cfg.WARMUP_TYPE!r}, expected constant or linear")
