"""A data set and trainers in a file of the user's own, as `--import tests/dassl/engine/tiny_method.py` sees them.

Images are 8 x 8 and written on first use; the model is a small convolution with dropout, so that every random generator
takes part in the result.
"""

from __future__ import annotations

import fcntl
import os
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU
from dassl.optim import build_lr_scheduler, build_optimizer

NAMES = ["red", "green", "blue"]


def write_images(root: str, per_class: int = 12) -> None:
    os.makedirs(root, exist_ok=True)
    with open(os.path.join(root, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rng = np.random.default_rng(0)
        for label, name in enumerate(NAMES):
            for number in range(per_class):
                path = os.path.join(root, f"{name}-{number}.png")
                pixels = rng.integers(0, 160, (8, 8, 3))
                pixels[..., label] += 60
                if not os.path.exists(path):
                    Image.fromarray(pixels.astype(np.uint8)).save(path)


@DATASET_REGISTRY.register()
class TinyImages(DatasetBase):
    """12 noisy images of each of three colours: 6 to train on (labels or not), 2 for validation, 4 for test."""

    names = NAMES

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        if not os.path.isdir(os.path.dirname(root)):
            raise FileNotFoundError(f'DATASET.ROOT "{root}" does not exist')
        write_images(root)
        self.items_root = root
        self.template = "a {} image"

        def items(first: int, last: int) -> list[Datum]:
            return [
                Datum(os.path.join(root, f"{NAMES[label]}-{number}.png"), label, 0, self.names[label])
                for label in range(3)
                for number in range(first, last)
            ]

        super().__init__(train_x=items(0, 6), train_u=items(0, 6), val=items(6, 8), test=items(8, 12))


@DATASET_REGISTRY.register()
class TinyOthers(TinyImages):
    """The same images under other class names."""

    names = ["rouge", "vert", "bleu"]


@DATASET_REGISTRY.register()
class TinyNoVal(TinyImages):
    """Without validation images."""

    @property
    def val(self):
        return None


@TRAINER_REGISTRY.register()
class Tiny(TrainerX):
    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {"TINY": {"WIDTH": 4, "DROPOUT": 0.2, "PREC": "fp32", "SLEEP": 0.0, "BREAK_AT": -1, "BOUND": True}}
        )

    @property
    def class_bound(self) -> bool:
        return self.cfg.TRAINER.TINY.BOUND

    def precision_name(self) -> str:
        return self.cfg.TRAINER.TINY.PREC

    def fingerprint_extra(self):
        return {"template": self.dm.dataset.template, "backbone": "tiny"}

    def build_model(self) -> None:
        width, dropout = self.cfg.TRAINER.TINY.WIDTH, self.cfg.TRAINER.TINY.DROPOUT
        self.model = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(width * 36, 3)
        ).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("tiny", self.model, self.optim, self.sched)
        self.wrapped = self.parallel(self.model)
        self.steps = 0
        self.seen: list[int] = []

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        self.seen.extend(batch["index"].tolist())
        self.steps += 1
        time.sleep(self.cfg.TRAINER.TINY.SLEEP)
        with self.precision.autocast():
            terms = {"ce": F.cross_entropy(self.wrapped(image).float(), label), "decay": 0.0 * image.sum()}
        if self.steps - 1 == self.cfg.TRAINER.TINY.BREAK_AT:
            terms["decay"] = terms["decay"] + float("nan")
        loss = sum(terms.values())
        self.model_backward_and_update(loss, terms=terms)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "noise": float(np.random.rand()), "draw": float(torch.rand(()))}

    def extra_state(self):
        return {"steps": self.steps}

    def load_extra_state(self, state):
        self.steps = state["steps"]


@TRAINER_REGISTRY.register()
class TinyXU(TrainerXU):
    """Labelled and unlabelled images; remembers what it saw."""

    def build_model(self) -> None:
        self.model = nn.Linear(3, 3)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model("tiny", self.model, self.optim)
        self.seen: list[tuple[int, int]] = []

    def model_inference(self, input):
        return self.model(input.mean(dim=(2, 3)))

    def forward_backward(self, batch_x, batch_u):
        image, label, unlabelled = self.parse_batch_train(batch_x, batch_u)
        self.seen.append((len(label), len(unlabelled)))
        self.model_backward_and_update(F.cross_entropy(self.model_inference(image), label))


@TRAINER_REGISTRY.register()
class TinyFixed(TrainerX):
    """Learns nothing."""

    def build_model(self) -> None:
        self.model = nn.Flatten()

    def model_inference(self, input):
        return input.mean(dim=(2, 3))
