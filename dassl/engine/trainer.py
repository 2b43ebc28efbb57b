"""TrainerX and TrainerXU: one pass over labelled data, or over labelled and unlabelled data."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dassl.data.prefetch import prefetched
from dassl.utils import AverageMeter, MetricMeter, distributed

from .base import TrainerBase
from .progress import progress
from .simple import Evaluation, SimpleTrainer
from .simple_net import SimpleNet

__all__ = [
    "AverageMeter",
    "Evaluation",
    "MetricMeter",
    "SimpleNet",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
]

logger = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    if name == "SummaryWriter":  # imported on demand, as it takes a second
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class TrainerX(SimpleTrainer):
    """Trainer on labelled data: `forward_backward(batch)`."""

    def run_epoch(self) -> None:
        """One pass over train_loader_x."""
        batches = prefetched(self.train_loader_x, self.device)
        _run_batches(self, ((batch,) for batch in batches), len(self.train_loader_x))

    def parse_batch_train(self, batch: Any) -> Any:
        """Image, label and domain of a batch, on the device."""
        return tuple(batch[name].to(self.device, non_blocking=True) for name in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trainer on labelled and unlabelled data: `forward_backward(batch_x, batch_u)`."""

    def run_epoch(self) -> None:
        """One pass of the length that TRAIN.COUNT_ITER says: train_x, train_u or smaller_one; the other repeats.

        Raises:
            ValueError: unknown COUNT_ITER, or the data set has no unlabelled data.
        """
        if self.train_loader_u is None:
            raise ValueError(f"{type(self).__name__} needs unlabelled data, but {self.cfg.DATASET.NAME} has no train_u")
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in lengths:
            raise ValueError(f"TRAIN.COUNT_ITER is {count!r}, expected one of {', '.join(lengths)}")
        batches = (itertools.islice(_repeat(one), lengths[count]) for one in (self.train_loader_x, self.train_loader_u))
        _run_batches(self, zip(*(prefetched(one, self.device) for one in batches)), lengths[count])

    def parse_batch_train(self, batch_x: Any, batch_u: Any) -> Any:
        """Labelled image and label, and unlabelled image, on the device."""
        return tuple(t.to(self.device, non_blocking=True) for t in (batch_x["img"], batch_x["label"], batch_u["img"]))


def _repeat(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _run_batches(trainer: SimpleTrainer, batches: Iterable[tuple[Any, ...]], num_batches: int) -> None:
    """Take a training step per entry of `batches` (the arguments of forward_backward), print and record."""
    trainer.set_model_mode("train")
    trainer.num_batches = num_batches
    frequency = trainer.cfg.TRAIN.PRINT_FREQ
    losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
    images, start = 0, time.perf_counter()
    end = start
    title = f"epoch {trainer.epoch + 1}/{trainer.max_epoch}"
    with contextlib.closing(progress(trainer.cfg, batches, title, num_batches)) as bar:
        for index, batch in enumerate(bar):
            trainer.batch_idx = index
            data_time.update(time.perf_counter() - end)
            lr = trainer.get_current_lr()  # in force in this batch; the last one moves it
            summary = trainer.forward_backward(*batch)
            _check_summary(trainer, summary)
            losses.update(summary)
            images += _batch_size(batch[0])
            batch_time.update(time.perf_counter() - end)
            if frequency > 0 and ((index + 1) % frequency == 0 or num_batches < frequency):
                bar.clear()
                _print(trainer, losses, batch_time, data_time, lr)
            step = trainer.epoch * num_batches + index
            for name, meter in losses.meters.items():
                trainer.write_scalar(f"train/{name}", meter.avg, step)
            trainer.write_scalar("train/lr", lr, step)
            end = time.perf_counter()
    seconds = time.perf_counter() - start
    logger.info("waiting for data: %.0f %% of the epoch", 100 * data_time.sum / seconds)
    images = sum(distributed.all_gather_object(images))
    trainer.train_seconds += seconds
    trainer.train_images += images
    if distributed.is_main_process():
        means = {name: meter.avg for name, meter in losses.meters.items()}
        record = {"kind": "epoch", "epoch": trainer.epoch + 1, "seconds": round(seconds, 3), "images": images}
        trainer.metrics.write({**record, **means})


def _print(trainer: SimpleTrainer, losses: MetricMeter, batch: AverageMeter, data: AverageMeter, lr: float) -> None:
    """The training line of Dassl, to the log, and the same as a record."""
    done, of, epoch = trainer.batch_idx + 1, trainer.num_batches, trainer.epoch + 1
    left = (of - done) + (trainer.max_epoch - epoch) * of
    eta = datetime.timedelta(seconds=int(batch.avg * left))
    logger.info(
        f"epoch [{epoch}/{trainer.max_epoch}] batch [{done}/{of}] time {batch.val:.3f} ({batch.avg:.3f}) "
        f"data {data.val:.3f} ({data.avg:.3f}) {losses} lr {lr:.4e} eta {eta}"
    )
    if distributed.is_main_process():
        place = {"kind": "train", "epoch": epoch, "batch": done, "batches": of, "step": trainer.epoch * of + done - 1}
        times = {"lr": lr, "seconds": round(batch.val, 4), "data_seconds": round(data.val, 4)}
        trainer.metrics.write({**place, **times, **{name: meter.val for name, meter in losses.meters.items()}})


def _check_summary(trainer: SimpleTrainer, summary: Mapping[str, Any] | None) -> None:
    """Stop when a trainer with its own step reports a loss that is infinite or NaN."""
    broken = {name: float(value) for name, value in (summary or {}).items() if not math.isfinite(value)}
    if any(name.startswith("loss") for name in broken):
        shown = ", ".join(f"{name} = {value}" for name, value in broken.items())
        raise FloatingPointError(
            f"{trainer.place()}: Loss is infinite or NaN! ({shown}); use a smaller OPTIM.LR, or PREC fp32"
        )


def _batch_size(batch: Any) -> int:
    """Number of images of a batch; 0 for one that is not a dictionary with a label or an image."""
    for name in ("label", "img"):
        value = batch.get(name) if isinstance(batch, Mapping) else None
        if isinstance(value, (Tensor, list, tuple)):
            return len(value)
    return 0
