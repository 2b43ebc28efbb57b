"""SimpleTrainer: a trainer made from a config, with data, model and evaluator; evaluation, saving and resuming."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.data.audit import Audit, audit_data
from dassl.data.prefetch import prefetched
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, distributed, load_pretrained_weights

from . import open_world, resume
from .base import TrainerBase, unwrap
from .machine import machine_of
from .precision import WHOLE, AccumulationStep, GradientProjection, Precision
from .progress import progress
from .random_state import unchanged_random_state
from .records import EVENTS, MetricsLog, plain, rewind_events
from .simple_net import SimpleNet

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """One evaluation: split "val" or "test", the evaluator's figures, images seen by all processes, wall seconds.

    `stored`: what the model computes from images was read from a file.
    """

    split: str
    results: dict[str, Any]
    images: int
    seconds: float
    stored: bool = False


class SimpleTrainer(TrainerBase):
    """Trainer of one data manager; subclasses say what a step is (TrainerX, TrainerXU).

    Args:
        data: in the place of the DataManager of the config; with a `ClassList` the trainer predicts without any images
            of its own.

    Attributes:
        cfg, device, precision, dm, evaluator, train_loader_x, train_loader_u, val_loader, test_loader, num_classes,
            num_source_domains, lab2cname: as in Dassl.
        best_result: best validation figure so far, -inf without one.
        evaluation: the last evaluation of the test set, or None.
    """

    model: Any
    train_loader_x: Any
    train_loader_u: Any
    val_loader: Any
    test_loader: Any

    audit: Audit | None = None  # of the data, in the main process
    temperature: float | None = None  # of the trained run that is evaluated, see TEST.CALIBRATE

    def __init__(self, cfg: CfgNode, data: Any = None):
        super().__init__()
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = self._choose_device()
        self.precision = Precision(self.precision_name(), self.device)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.metrics = MetricsLog(self.output_dir)
        self.best_result = -math.inf
        self.evaluation: Evaluation | None = None
        self.train_seconds = 0.0
        self.train_images = 0
        self.elapsed_before = 0.0  # seconds of earlier starts of a resumed run
        self.time_start = time.time()
        self.machines: list[dict[str, Any]] = []  # of earlier starts
        self._resumed: dict[str, Any] | None = None
        self._data = data
        self.build_data_loader()
        self.other_loaders = {} if cfg.TEST.NO_TEST or data is not None else open_world.other_loaders(self)
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    # what subclasses may say

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ValueError if the config does not suit this trainer."""

    def precision_name(self) -> str:
        """fp32, fp16, amp or bf16: the precision asked for."""
        return "fp32"

    def test_precision_name(self) -> str:
        """fp32, fp16, amp or bf16 in evaluations; "" is that of the training."""
        return ""

    @cached_property
    def test_precision(self) -> Precision:
        """The precision of evaluations."""
        name = self.test_precision_name()
        return Precision(name, self.device) if name else self.precision

    def fingerprint_extra(self) -> dict[str, str]:
        """Further entries of the fingerprint, such as {"template": ..., "backbone": hash}."""
        return {}

    def chosen_on(self) -> str | None:
        """Split, val or test, by which the method itself chose something such as hyper-parameters; None without one."""
        return None

    @property
    def has_own_val(self) -> bool:
        """True if there are validation images other than the test images."""
        return self.val_loader is not None and self.dm.dataset.val != self.dm.dataset.test

    def build_data_loader(self) -> None:
        """Read the data set and make its loaders."""
        self.dm = DataManager(self.cfg) if self._data is None else self._data
        if self._data is None and distributed.is_main_process():
            self.audit = audit_data(self.dm.dataset, self.cfg.DATASET.NUM_SHOTS, self.cfg.TEST.SPLIT)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """A classifier of MODEL.BACKBONE with a linear head, registered as "model"; most trainers build their own."""
        logger.info("Building model")
        self.model = SimpleNet(self.cfg, self.cfg.MODEL, self.num_classes).to(self.device)
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, self.cfg.MODEL.INIT_WEIGHTS)
        logger.info("# params: %s", f"{count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)
        self.model = self.parallel(self.model)

    def parallel(self, module: nn.Module, find_unused_parameters: bool = False) -> Any:
        """`module` for use in training with several processes: gradients are averaged over them.

        Register the module itself, so that checkpoints hold no wrapper, and call what this returns in the training
        step. In a single process, or if nothing in the module learns, it is the module.
        """
        if distributed.get_world_size() == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=device_ids, find_unused_parameters=find_unused_parameters
        )

    def classnames(self) -> list[str]:
        return list(getattr(self.dm.dataset, "classnames", None) or [])

    def class_facts(self) -> dict[str, Any]:
        dataset = self.dm.dataset
        template, long_names = (getattr(dataset, name, "") for name in ("template", "long_names"))
        return {"names": self.classnames(), "template": template or "", "long_names": bool(long_names)}

    def config_text(self) -> str:
        return self.cfg.dump()

    def model_backward_and_update(
        self,
        loss: Tensor,
        names: Any = None,
        terms: Any = None,
        projection: GradientProjection | None = None,
        metrics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """One optimisation step of the named models; returns loss, terms and metrics, which are read together."""
        chosen = self.get_model_names(names)
        optims = [self._optims[name] for name in chosen if self._optims[name] is not None]
        parameters = [p for optim in optims for group in optim.param_groups for p in group["params"]]
        part = self.part_of_step()
        found = self.precision.step(loss, optims, parameters, terms, self.place(), projection, part, metrics)
        if part.last:
            with torch.no_grad():
                self.after_step()
        return found

    def after_step(self) -> None:
        """Hook after an optimisation step, without gradients: caches, moving averages."""

    def part_of_step(self) -> AccumulationStep:
        """Place of this batch among the OPTIM.ACCUMULATE of a step; the last step of an epoch may have fewer."""
        size = self.cfg.OPTIM.ACCUMULATE
        if size == 1:
            return WHOLE
        place = self.batch_idx % size
        count = min(size, self.num_batches - (self.batch_idx - place))
        return AccumulationStep(place == 0, place == count - 1, 1 / count)

    # training

    def train(self, start_epoch: int | None = None, max_epoch: int | None = None) -> None:
        """Train until max_epoch (OPTIM.MAX_EPOCH), from where an earlier start of the same run stopped.

        A trainer with nothing registered has nothing to learn: it is evaluated.
        """
        if not self._models:
            logger.info("%s has nothing to train", type(self).__name__)
            self.max_epoch = 0
        elif getattr(self.dm.dataset, "test_only", False):
            raise ValueError(
                f"{self.cfg.DATASET.NAME} has test images only; add training images, or evaluate a trained model "
                "(--eval-only --model-dir DIR)"
            )
        if not self.cfg.TEST.NO_TEST:
            open_world.check_evaluation(self)
        start = self.start_epoch if start_epoch is None else start_epoch
        try:
            super().train(start, self.max_epoch if max_epoch is None else max_epoch)
        finally:
            self.close_writer()

    def before_train(self) -> None:
        self.start_epoch = max(self.start_epoch, self._resume())
        self.epoch = max(0, self.start_epoch - 1)
        if distributed.is_main_process():
            size = None if self._resumed is None else self._resumed["records"]
            self.metrics.rewind(self.start_epoch, size)
            events = {} if self.start_epoch == 0 else (self._resumed or {}).get("events")
            if events is not None:  # epoch files do not say
                rewind_events(self.output_dir, events)
        if self.max_epoch > 0:
            step = self.start_epoch * len(self.train_loader_x)
            self.init_writer(str(Path(self.output_dir) / EVENTS), step if self.start_epoch else None)
        # Processes that start alike must not draw alike.
        if distributed.get_world_size() > 1:
            torch.manual_seed((torch.initial_seed() + distributed.get_rank()) % 2**63)
        self.time_start = time.time()

    def _resume(self) -> int:
        """Continue this run, or the one in RESUME; the number of epochs done.

        Epoch files, which have no random states, are used only when RESUME asks for it or when the run keeps no resume
        state: without one yet, a run that was killed in its first epochs repeats them exactly.
        """
        own, foreign = self.output_dir, self.cfg.RESUME
        directory = foreign if foreign and not resume.resume_file(own).is_file() else own
        if not self._models:
            return 0
        if resume.resume_file(directory).is_file():
            self._resumed = resume.load_resume_state(self, directory)
            epoch = int(self._resumed["epoch"])
        elif foreign or self.cfg.TRAIN.RESUME_FREQ == 0:
            epoch = self.resume_model_if_exist(directory)
            if epoch > 0:
                logger.warning("random states are not in the epoch files: the order of the data differs from now on")
        else:
            return 0
        if Path(directory).resolve() != Path(own).resolve():
            if epoch == 0:
                raise FileNotFoundError(f'RESUME is "{directory}", but there is no checkpoint to resume from')
            resume.copy_best(self, directory)
        if epoch > 0 and self._resumed is None and self.cfg.TEST.FINAL_MODEL == "best_val":
            self.best_result = resume.best_result(self, own)
        return epoch

    def prepare_epoch(self) -> None:
        if self._resumed is not None:
            resume.set_random_states(self, self._resumed)
            self._resumed = None
        for loader in (self.train_loader_x, self.train_loader_u):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(self.epoch, self.max_epoch)
            elif hasattr(getattr(loader, "sampler", None), "set_epoch"):
                loader.sampler.set_epoch(self.epoch)

    def after_epoch(self) -> None:
        done = self.epoch + 1
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if done == self.max_epoch or (frequency > 0 and done % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def save_resume_state(self) -> None:
        frequency, done = self.cfg.TRAIN.RESUME_FREQ, self.epoch + 1
        if frequency > 0 and (done % frequency == 0 or done == self.max_epoch):
            resume.save_resume_state(self)

    def after_train(self) -> None:
        logger.info("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val" and self._models:
                logger.info("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            elif self._models:
                logger.info("Deploy the last-epoch model")
            self.test()
        logger.info("Elapsed: %s", datetime.timedelta(seconds=round(self.elapsed())))
        self.close_writer()

    def all_machines(self) -> list[dict[str, Any]]:
        """Properties of the machines this run was trained on, the present one last."""
        now = machine_of(self)
        return [*(machine for machine in self.machines if machine != now), now]

    def elapsed(self) -> float:
        """Seconds of training and evaluation since the run began, earlier starts included."""
        return self.elapsed_before + time.time() - self.time_start

    # evaluation

    def before_inference(self) -> None:
        """Hook before images are given to `model_inference`, in an evaluation or to predict."""
        self.set_model_mode("eval")

    def similarity_scale(self) -> float:
        """Factor between the logits and the similarities that scores of foreign images start from."""
        return 1.0

    def outputs(self, loader: Any, title: str) -> Iterator[tuple[Any, Tensor, Any]]:
        """Iterates over an evaluation loader: output, labels, the batch itself."""
        with contextlib.closing(progress(self.cfg, loader, title)) as batches:
            for batch in prefetched(batches, self.device):
                image, label = self.parse_batch_test(batch)
                with self.test_precision.autocast():
                    output = self.model_inference(image)
                yield output, label, batch

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on `split` (val or test) and return the first figure, accuracy in percent.

        Without `split` it is TEST.SPLIT, and what TEST.CALIBRATE, OOD_DATASETS and JOINT ask for is measured too. "val"
        without a validation set is the test set, with a warning. No random generator moves.

        Raises:
            ValueError: another split.
        """
        with unchanged_random_state():
            return self._test(split)

    def _test(self, asked: str | None) -> float:
        split, loader = self._test_loader(self.cfg.TEST.SPLIT if asked is None else asked)
        self.before_inference()
        self.evaluator.reset()
        if asked is None and self.cfg.TEST.CALIBRATE:
            fitted = self.temperature is None
            self.evaluator.temperature = open_world.temperature_of(self) if fitted else self.temperature
        inside = open_world.ScoreList(self.similarity_scale()) if asked is None and self.other_loaders else None
        logger.info("Evaluate on the *%s* set", split)
        images, start = 0, time.perf_counter()
        loader = self.evaluation_batches(loader)
        for output, label, batch in self.outputs(loader, f"evaluate {split}"):
            paths = {"paths": list(batch["impath"])} if self.cfg.TEST.PREDICTIONS else {}
            self.evaluator.process(output, label, **paths)
            images += len(label)
            if inside is not None:
                inside.add(output)
        results = self.evaluator.evaluate()
        seconds = time.perf_counter() - start
        figures = {**results, **self.evaluator.summary()} if hasattr(self.evaluator, "summary") else dict(results)
        if inside is not None:
            figures["ood"] = open_world.detect_others(self, inside)
        if asked is None and self.cfg.TEST.JOINT:
            figures["joint"] = open_world.joint_figures(figures["per_class"], self.num_classes)
            logger.info("* among all classes: base %(base).1f%%, new %(new).1f%%, H %(h).1f%%", figures["joint"])
        total, stored = sum(distributed.all_gather_object(images)), getattr(loader, "stored", False)
        evaluation = Evaluation(split, figures, total, seconds, stored)
        numbers = {name: value for name, value in results.items() if isinstance(value, (int, float))}
        for name, value in numbers.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if distributed.is_main_process():
            record = {"images": evaluation.images, "seconds": round(seconds, 3), **plain(numbers)}
            self.metrics.write({"kind": split, "epoch": self.epoch + 1, **record})
        self.evaluation = evaluation
        return float(next(iter(results.values())))

    def evaluation_batches(self, loader: Any) -> Any:
        """Batches to evaluate; override to yield cached features."""
        return loader

    def _test_loader(self, split: str) -> tuple[str, Any]:
        if split not in ("val", "test"):
            raise ValueError(f"the split to evaluate is {split!r}, expected val or test (TEST.SPLIT)")
        if split == "val" and self.val_loader is None:
            logger.warning("there is no validation set: the test set is used in its place")
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise ValueError(
                f"{self.cfg.DATASET.NAME} has no test images; set TEST.NO_TEST True to train without a test"
            )
        return split, loader

    def model_inference(self, input: Any) -> Tensor:
        return unwrap(self.model)(input)  # a wrapper would wait for processes that have fewer test batches

    def parse_batch_test(self, batch: Any) -> tuple[Tensor, Tensor]:
        return tuple(batch[name].to(self.device, non_blocking=True) for name in ("img", "label"))

    def _choose_device(self) -> torch.device:
        if not (self.cfg.USE_CUDA and torch.cuda.is_available()):
            return torch.device("cpu")
        return torch.device("cuda", distributed.get_local_rank())
