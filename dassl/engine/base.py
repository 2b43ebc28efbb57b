"""TrainerBase: models with their optimisers and schedules, checkpoints, the training loop over epochs, TensorBoard."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dassl.utils import distributed, load_checkpoint, resume_from_checkpoint, save_checkpoint, tolist_if_not
from dassl.utils.torchtools import POINTER, is_checkpoint_folder

from .checkpoints import check_classnames, check_weights, checkpoint_file, read_checkpoint
from .precision import check_finite

logger = logging.getLogger(__name__)

Names = str | Sequence[str] | None


class TrainerBase:
    """Base of every trainer, independent of its data.

    `train` calls before_train, then before_epoch, run_epoch and after_epoch for every epoch, then after_train.
    """

    epoch: int = 0  # of the epoch that runs, from 0
    start_epoch: int = 0
    max_epoch: int = 0
    batch_idx: int = 0  # of the batch that runs, from 0
    num_batches: int = 0  # per epoch
    output_dir: str = ""

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None

    # models

    def register_model(self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None) -> None:
        """Make a module known under `name`: its mode is set, its optimiser stepped, its weights saved and resumed.

        Raises:
            AttributeError: called before `super().__init__()`.
            ValueError: the name is taken.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot assign model before super().__init__() call")
        if name in self._models:
            raise ValueError(f'Found duplicate model name "{name}"; every registered model needs a unique name')
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """`names` as a list, all registered names for None.

        Raises:
            KeyError: nothing is registered under one of the names.
        """
        if names is None:
            return list(self._models)
        chosen = tolist_if_not(names) if isinstance(names, (str, list)) else list(names)
        for name in chosen:
            if name not in self._models:
                raise KeyError(f"no model {name!r} is registered, known are {', '.join(self._models) or 'none'}")
        return chosen

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Put registered models in mode "train", or "test" (the same as "eval").

        Raises:
            ValueError: another mode.
        """
        if mode not in ("train", "test", "eval"):
            raise ValueError(f"mode is {mode!r}, expected train, test or eval")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules of the named models; trainers call it in the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Learning rate of the first parameter group of the first named model that has an optimiser, 0 without one."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                return float(self._optims[name].param_groups[0]["lr"])
        return 0.0

    # one step

    def detect_anomaly(self, loss: Tensor, terms: Mapping[str, Tensor] | None = None) -> None:
        """Raise FloatingPointError, with epoch, batch and the terms at error, if `loss` is infinite or NaN."""
        check_finite(loss, terms, self.place())

    def place(self) -> str:
        """Position of training for messages: "epoch 3, batch 5", both from 1."""
        return f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients of the named models' optimisers."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check that the loss is finite and compute gradients."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers of the named models."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(
        self, loss: Tensor, names: Names = None, terms: Mapping[str, Tensor] | None = None
    ) -> dict[str, float] | None:
        """One optimisation step of the named models; `terms` are the parts of the loss, for the error message."""
        self.model_zero_grad(names)
        self.detect_anomaly(loss, terms)
        loss.backward()
        self.model_update(names)
        return None

    # checkpoints

    @property
    def class_bound(self) -> bool:
        """True if learned weights belong to the classes they were trained on, so that other classes are refused."""
        return True

    def classnames(self) -> list[str]:
        """Names of the classes in order of label; empty when unknown."""
        return []

    def class_facts(self) -> dict[str, Any]:
        """Class names and sentence options that rebuild a model, besides its config."""
        return {"names": list(self.classnames())}

    def config_text(self) -> str:
        """The config as yaml; empty when there is none."""
        return ""

    def extra_state(self) -> dict[str, Any]:
        """Further state of a method, besides its registered models; tensors and plain Python values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave, when a run is resumed.

        Raises:
            ValueError: there is something to take and the trainer does not say how.
        """
        if state:
            raise ValueError(f"{type(self).__name__} writes extra_state() but has no load_extra_state()")

    def for_classes(self, path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weights of a checkpoint for the classes at hand; a class-bound method refuses other classes.

        A method that can move learned parameters from class list to class list does it here.

        Raises:
            ValueError: other classes.
        """
        if self.class_bound:
            check_classnames(path, checkpoint, list(self.classnames()))
        return checkpoint["state_dict"]

    def adapt_state_dict(self, name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a checkpoint as model `name` expects them; the place to read files of other programs."""
        return state_dict

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write DIRECTORY/<name>/model.pth.tar-<epoch + 1> (or `model_name`) for every registered model.

        The file holds state_dict, epoch (1-based), optimizer, scheduler, val_result, classnames, classes
        (`class_facts`) and config, and `extra` if the method has its own state. Only the main process writes.
        """
        if distributed.is_main_process():
            for name in self.get_model_names():
                optim, sched = self._optims[name], self._scheds[name]
                state = {
                    "state_dict": self._models[name].state_dict(),
                    "epoch": epoch + 1,
                    "optimizer": None if optim is None else optim.state_dict(),
                    "scheduler": None if sched is None else sched.state_dict(),
                    "val_result": None if val_result is None else float(val_result),
                    "classnames": list(self.classnames()),
                    "classes": {key: value for key, value in self.class_facts().items() if key != "names"},
                    "config": self.config_text(),
                }
                extra = self.extra_state()
                if extra:
                    state["extra"] = extra
                save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)
        distributed.barrier()

    def resume_model_if_exist(self, directory: str) -> int:
        """Load weights, optimisers, schedules and method state from the latest epoch files of DIRECTORY.

        Returns:
            The epoch to continue with, 0 if DIRECTORY has no checkpoint of every registered model.
        """
        names = self.get_model_names()
        if not names or not all(is_checkpoint_folder(os.path.join(directory, name)) for name in names):
            logger.info("No checkpoint found, train from scratch")
            return 0
        logger.info("Found checkpoint at %s (will resume training)", directory)
        epochs = {
            name: resume_from_checkpoint(
                os.path.join(directory, name), self._models[name], self._optims[name], self._scheds[name]
            )
            for name in names
        }
        if len(set(epochs.values())) > 1:
            raise ValueError(f"the checkpoints in {directory} are of different epochs: {epochs}")
        first = Path(directory) / names[0]
        extra = load_checkpoint(first / (first / POINTER).read_text(encoding="utf-8").strip()).get("extra")
        if extra:
            self.load_extra_state(extra)
        return next(iter(epochs.values()))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load DIRECTORY/<name>/model.pth.tar-<epoch> into every registered model; model-best.pth.tar for None.

        An empty directory loads nothing. Everything in the file must fit: names, shapes and, for a class-bound method,
        the class names. Nothing is changed if one file does not fit.

        Raises:
            FileNotFoundError: there is no such file; the message lists what is there.
            ValueError: the file is damaged, of another architecture, or of other classes.
        """
        if not directory:
            logger.info("Note that load_model() is skipped as no pretrained model is given")
            return
        paths = {name: checkpoint_file(directory, name, epoch) for name in self.get_model_names()}
        self.load_checkpoints({name: (path, read_checkpoint(path)) for name, path in paths.items()})

    def load_checkpoints(self, found: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> None:
        """Load the contents of checkpoint files, (path, content) by model name, as `load_model` does.

        Raises:
            ValueError: a registered model has no checkpoint among them, or one that does not fit.
        """
        missing = [name for name in self.get_model_names() if name not in found]
        if missing:
            raise ValueError(f"there is no checkpoint of {', '.join(missing)}, only of {', '.join(found) or 'nothing'}")
        loaded = {}
        for name in self.get_model_names():
            path, checkpoint = found[name]
            weights = self.adapt_state_dict(name, self.for_classes(path, checkpoint))
            check_weights(path, self._models[name], weights)
            loaded[name] = (path, checkpoint, weights)
        for name, (path, checkpoint, weights) in loaded.items():
            self._models[name].load_state_dict(weights)
            logger.info(
                "Load %s to %s (epoch=%s, val_result=%s)", path, name, checkpoint["epoch"], checkpoint.get("val_result")
            )

    def prepare_epoch(self) -> None:
        """Called before the hooks of every epoch; the seam where SimpleTrainer restores random states."""

    def save_resume_state(self) -> None:
        """Called after every epoch, when all hooks have run; SimpleTrainer writes the rolling resume state."""

    # life cycle

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Train the epochs start_epoch <= epoch < max_epoch; before_train may move start_epoch when it resumes."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.prepare_epoch()
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
            self.save_resume_state()
        self.after_train()

    def before_train(self) -> None:
        """Hook before the first epoch."""

    def after_train(self) -> None:
        """Hook after the last epoch."""

    def before_epoch(self) -> None:
        """Hook before every epoch."""

    def after_epoch(self) -> None:
        """Hook after every epoch."""

    def run_epoch(self) -> None:
        """One pass over the training data."""
        raise NotImplementedError(f"{type(self).__name__} has no run_epoch()")

    def test(self, split: str | None = None) -> float:
        """Evaluate and return the main figure."""
        raise NotImplementedError(f"{type(self).__name__} has no test()")

    def parse_batch_train(self, *batches: Any) -> Any:
        """Tensors of a training batch, on the device."""
        raise NotImplementedError(f"{type(self).__name__} has no parse_batch_train()")

    def parse_batch_test(self, batch: Any) -> Any:
        """Input and label of an evaluation batch, on the device."""
        raise NotImplementedError(f"{type(self).__name__} has no parse_batch_test()")

    def forward_backward(self, *batches: Any) -> dict[str, float] | None:
        """One training step; returns the scalars to show."""
        raise NotImplementedError(f"{type(self).__name__} has no forward_backward()")

    def model_inference(self, input: Any) -> Tensor:
        """Logits of a batch in evaluation."""
        raise NotImplementedError(f"{type(self).__name__} has no model_inference()")

    # TensorBoard

    def init_writer(self, log_dir: str, purge_step: int | None = None) -> None:
        """Open OUTPUT_DIR/tensorboard; on a resumed run, points from `purge_step` on are hidden. Main process only."""
        if self._writer is None and distributed.is_main_process():
            from torch.utils.tensorboard import SummaryWriter  # takes a second, and evaluation needs none

            logger.info("Initialize tensorboard (log_dir=%s)", log_dir)
            self._writer = SummaryWriter(log_dir=log_dir, purge_step=purge_step)

    def flush_writer(self) -> None:
        """Write out what was added so far."""
        if self._writer is not None:
            self._writer.flush()

    def close_writer(self) -> None:
        """Flush and close it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point; does nothing while no writer is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside a DistributedDataParallel, or the module itself."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def trainable_parameters(models: Mapping[str, nn.Module]) -> int:
    """Number of values that learn in the given models, each parameter counted once."""
    found = {id(p): p.numel() for model in models.values() for p in model.parameters() if p.requires_grad}
    return sum(found.values())
