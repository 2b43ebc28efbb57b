"""Base of the trainers of dense tasks: data, AdamW with rates that fall from layer to layer, the step, the pictures.

A task is a subclass, registered in TRAINER_REGISTRY, with a section `node` of options below TRAINER:

    node = "UPERNET"
    defaults()                       dense_options("UPERNET", {its own Options})
    read_split(split, train)         pictures of "train", "val" or "test" (`dense.data.Pictures`): a torch data set of
                                     items of any kind, with the list `items` of Datum(path, 0); files by
                                     `self.dataset.file(split, "masks")` and so on; random numbers from torch, numpy or
                                     random are seeded for every item
    collate(items)                   static: items -> batch, a dictionary with "img" (a tensor, or a list of them)
    build_network()                  the module that learns, with a `DenseBackbone` (`self.backbone()`) somewhere inside
    losses(batch)                    scalar terms by name, whose sum is minimised; call `self.network`, not the module
    parse_batch_test(batch)          (input, targets) on the device, targets one for each picture (a list or tensor)
    model_inference(input)           predictions
    build_evaluator()                reset(); process(predictions, targets); evaluate() -> OrderedDict of figures, the
                                     one models are chosen by first; summary() -> what else goes into result.json
    drawings(count)                  pictures with predictions, uint8 tensors (3, H, W) of equal size, for
                                     OUTPUT_DIR/predictions.png at the end of a run; [] for none

and optionally `sampler(pictures, length)` and `parameter_groups(network)`. From the engine, unchanged: --resume and the
rolling state after every epoch, result.json, metrics.jsonl, --eval-only, sweeps and reports. An epoch is a pass over
the data, or EPOCH_STEPS batches: 60,000 iterations are EPOCH_STEPS 1000 and OPTIM.MAX_EPOCH 60. OPTIM.LR_SCHEDULER is
batch_cosine or batch_linear (to OPTIM.FINAL_LR), after WARMUP_STEPS batches.
Packages of the extra are imported inside functions, through `needs`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

import clip
from clip import CLIP
from dassl.config import CfgNode, Option, method_options
from dassl.data.datasets import build_dataset
from dassl.data.samplers import SeededSampler
from dassl.engine import TrainerX
from dassl.optim import BATCH_SCHEDS, build_optimizer
from dassl.utils import count_num_param, distributed
from dense.backbone import DenseBackbone, layer_decay_groups
from dense.data import DenseData, DenseDataset, Passes, Pictures
from trainers.parts.feature_cache import state_hash
from trainers.parts.inputs import input_options
from trainers.parts.options import WithOptions, count, precision

logger = logging.getLogger(__name__)

SHEET = "predictions.png"


def needs(package: str) -> Any:
    """A package of the extra.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as err:
        raise ImportError(f"this task needs {package}: pip install -r requirements-dense.txt ({err})") from err


PATCH_SIZE = count(0, "pixels, 4, 8, 16 or 32; 0 = the tower's, or the nearest of these", low=0)


def dense_options(node: str, options: Mapping[str, Any], backbone: bool = True, learns: bool = True) -> CfgNode:
    """Section of a dense task: its own options, then those of its `DenseBackbone`, of training, and of all tasks."""
    of_backbone = {
        "DROP_PATH": Option(0.0, "stochastic depth in the last block, growing linearly from 0", low=0, below=1),
        "LAYER_DECAY": Option(1.0, "factor on the learning rate from block to block, downwards", above=0, high=1),
        "WINDOW": count(0, "side of the attention windows in patches; 0 = the whole image everywhere", low=0),
        "PATCH_SIZE": PATCH_SIZE,
        "CHECKPOINT": Option(False, "compute blocks again in the backward pass, to save memory"),
    }
    training = {
        "EPOCH_STEPS": count(0, "batches of an epoch; 0 = one pass over the data", low=0),
        "WARMUP_STEPS": count(0, "batches of linear warm-up from OPTIM.WARMUP_MIN_LR", low=0),
        "EVAL_FREQ": count(0, "epochs between evaluations on the validation split; 0 = only at the end", low=0),
    }
    shared = {
        "SHEET": count(16, "pictures on predictions.png; 0 = no such file", low=0),
        "PREC": precision("fp32", ("fp32", "amp", "bf16", "auto"), "; what learns is fp32 in all of them"),
    }
    more = (of_backbone if backbone else {}) | (training if learns else {})
    return method_options(node, {**options, **more, **shared})


class DenseTrainer(WithOptions, TrainerX):
    """Base of the trainers; see the module. Attributes: `dataset`, `network` (the module, wrapped where it must be)."""

    input_defaults = input_options(clip.Input())
    learns = True  # False: there is nothing to train, the run is its evaluation
    network: Any

    @classmethod
    def config_problems(cls, cfg: CfgNode) -> list[str]:
        """Relations of options that do not hold, in words; nothing of another trainer's config."""
        if "MODEL" not in cfg or cls.__name__ != cfg.TRAINER.NAME:
            return []
        found, options = [], cfg.TRAINER[cls.node]
        if cls.learns and cfg.OPTIM.LR_SCHEDULER not in BATCH_SCHEDS:
            found.append(f"OPTIM.LR_SCHEDULER is {cfg.OPTIM.LR_SCHEDULER}, expected {' or '.join(BATCH_SCHEDS)}")
        if cls.learns and cfg.OPTIM.WARMUP_EPOCH > 0:
            found.append(
                f"OPTIM.WARMUP_EPOCH is {cfg.OPTIM.WARMUP_EPOCH}, expected 0: set TRAINER.{cls.node}.WARMUP_STEPS"
            )
        if options.get("PATCH_SIZE", 0) not in (0, 4, 8, 16, 32):
            found.append(f"TRAINER.{cls.node}.PATCH_SIZE is {options.PATCH_SIZE}, expected 0, 4, 8, 16 or 32")
        return found

    def build_data_loader(self) -> None:
        """Read the data set and make its loaders.

        Raises:
            ValueError: a data set of classes.
        """
        found: Any = build_dataset(self.cfg)
        if not isinstance(found, DenseDataset):
            raise ValueError(
                f"DATASET.NAME is {self.cfg.DATASET.NAME}, which has classes of whole pictures; {type(self).__name__} "
                "reads a dense data set, such as EmojiScenes"
            )
        self.dataset = found
        self.dm: Any = DenseData(
            self.cfg, found, self.read_split, self.collate, self.sampler, self.options.get("EPOCH_STEPS", 0)
        )
        for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader"):
            setattr(self, name, getattr(self.dm, name))
        self.num_classes, self.lab2cname, self.num_source_domains = found.num_classes, found.lab2cname, 0

    def build_model(self) -> None:
        network = self.build_network().to(self.device)
        logger.info(
            "%s on %s: %s parameters",
            type(self).__name__,
            self.cfg.MODEL.BACKBONE.NAME,
            f"{count_num_param(network):,}",
        )
        self.model = network
        self.network = self.parallel(network) if self.learns else network
        if not self.learns:
            return
        optim, total = self.cfg.OPTIM, self.cfg.OPTIM.MAX_EPOCH * len(self.train_loader_x or ())
        self.optim = build_optimizer(self.parameter_groups(network), optim)
        warmup = self.options.WARMUP_STEPS
        if warmup >= total > 0:
            raise ValueError(
                f"TRAINER.{self.node}.WARMUP_STEPS is {warmup}, expected fewer than the {total} batches of the run"
            )
        ends = {"start": optim.WARMUP_MIN_LR, "end": optim.FINAL_LR}
        self.sched = BATCH_SCHEDS[optim.LR_SCHEDULER](self.optim, optim.LR, max(1, total), warmup, **ends)
        self.register_model("model", network, self.optim, self.sched)

    def load_clip(self) -> CLIP:
        """The CLIP of MODEL.BACKBONE.NAME in fp32, on the CPU."""
        model, _ = clip.load(self.cfg.MODEL.BACKBONE.NAME)
        self.backbone_hash = state_hash(model)
        return model

    def backbone(self, model: CLIP | None = None, channels: int = 256) -> DenseBackbone:
        """The backbone with the shared options, of the CLIP given or of MODEL.BACKBONE.NAME."""
        options = self.options
        return DenseBackbone(
            self.load_clip() if model is None else model,
            channels,
            options.PATCH_SIZE or None,
            options.WINDOW,
            options.DROP_PATH,
            options.CHECKPOINT,
        )

    def fingerprint_extra(self) -> dict[str, str]:
        return {"backbone": self.backbone_hash}

    def forward_backward(self, batch: Any) -> dict[str, float]:
        with self.precision.autocast():
            terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        shown = self.model_backward_and_update(loss, terms=terms)
        self.update_lr()
        return shown

    def after_epoch(self) -> None:
        super().after_epoch()
        frequency, done = self.options.EVAL_FREQ, self.epoch + 1
        if frequency and done % frequency == 0 and done < self.max_epoch and self.val_loader is not None:
            self.test("val")

    def after_train(self) -> None:
        super().after_train()
        if self.options.SHEET and distributed.is_main_process():
            self.write_sheet()

    @torch.no_grad()
    def write_sheet(self) -> None:
        """Write predictions.png, four pictures in a row."""
        self.before_inference()
        if drawn := self.drawings(self.options.SHEET):
            path = Path(self.output_dir) / SHEET
            save_image(make_grid(drawn, nrow=4, padding=4, pad_value=255).float() / 255, path)
            logger.info("Predictions are drawn on %s", path)

    # what a task says

    def read_split(self, split: str, train: bool) -> Pictures:
        """Pictures of a split; `train` with augmentation."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """A batch of items."""
        raise NotImplementedError("a dense task makes its batches itself")

    def sampler(self, pictures: Pictures, length: int) -> SeededSampler:
        """Order of `length` training items."""
        return Passes(pictures, length)

    def build_network(self) -> nn.Module:
        """The module that learns."""
        raise NotImplementedError(f"{type(self).__name__} has no network")

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Parameters that learn, with their rates."""
        optim = self.cfg.OPTIM
        return layer_decay_groups(network, optim.LR, optim.WEIGHT_DECAY, self.options.LAYER_DECAY)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalar loss terms of a batch."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def build_evaluator(self) -> Any:
        """Evaluator of the task's predictions."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing")

    def drawings(self, count: int) -> list[Tensor]:
        """At most `count` pictures with predictions, uint8 (3, H, W)."""
        return []

    def __init__(self, cfg: CfgNode, data: Any = None) -> None:
        super().__init__(cfg, data)
        self.evaluator = self.build_evaluator()


__all__ = ["DenseTrainer", "dense_options", "needs"]
