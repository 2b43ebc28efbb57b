"""Parts of the engine that trainers ask for and the original Dassl (github.com/KaiyangZhou/Dassl.pytorch) lacks.

Its training loop, evaluation and files stay as they are. Methods run on one device, in the precisions fp32, fp16, amp
and bf16 on a GPU and fp32 on a CPU, and choices and bounds of their options are checked.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl import engine, optim
from dassl.utils import load_checkpoint

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "amp", "bf16", "auto")
BACKBONE_INPUTS: list[Callable[[str], Mapping[str, Any] | None]] = []  # the original's yaml files give all of INPUT
Original: Any = engine.TrainerX
FOLDERS = {"clip": "prompts.py", "transport": "sinkhorn.py"}  # beside trainers/, and a file that tells ours from others

# Keys that methods read and that the original has not.
KEYS = {
    "INPUT": {"TEMPLATE": "", "RESIZE": "shortest"},
    "DATASET": {"DESCRIPTIONS": [], "SUBSAMPLE_CLASSES": "all"},
    "TRAIN": {"INIT_FROM": "", "MEMORY_BUDGET": 0.0, "TEXT_CHUNK": 0, "IMAGE_CHUNK": 0},
    "TEST": {"VIEWS": 0, "FEATURE_CACHE": False},
}


def check_checkout() -> None:
    """Raise ImportError if this Python, torch or the folders beside trainers/ are not those that trainers need."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 4) or sys.version_info < (3, 10):
        raise ImportError(
            f"this is torch {torch.__version__} on Python {sys.version.split()[0]}: the trainers of ALIGN need torch "
            "2.4 and Python 3.10, or later"
        )
    for name, file in FOLDERS.items():
        places = list(getattr(find_spec(name), "submodule_search_locations", None) or [])
        if not any(os.path.isfile(os.path.join(place, file)) for place in places):
            found = f"found is that of {places[0]}" if places else "there is none"
            raise ImportError(
                f"the trainers of ALIGN need its folder {name}/, {found}: put clip/, trainers/ and transport/ of ALIGN "
                "into the checkout, in the place of the folders of these names"
            )


class ConfigError(ValueError):
    """Options that cannot be."""

    def __init__(self, source: str, problems: Sequence[str]):
        super().__init__("\n".join([f"errors in {source}:", *(f"  {problem}" for problem in problems)]))


@dataclass(frozen=True)
class Option:
    """Default of an option and the values it may take; of length, kind, rule and texts nothing is checked here."""

    default: Any
    help: str = ""
    choices: Iterable[Any] | None = None
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    length: int | tuple[int, ...] | None = None
    kind: type | None = None
    rule: tuple[Callable[[Any], Any], str] | None = None
    texts: bool = False

    def problem(self, value: Any) -> str:
        """Description of the allowed values if `value` is not one; "" if it is."""
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one == self.default:
                continue
            if self.choices is not None and one not in (choices := tuple(self.choices)):
                return f"is {one!r}, expected one of {', '.join(map(repr, choices))}"
            if isinstance(one, (int, float)) and not (self.above < one < self.below and self.low <= one <= self.high):
                bounds = {"from": self.low, "above": self.above, "to": self.high, "below": self.below}
                words = [f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound)]
                return f"is {one!r}, expected a number {' '.join(words)}"
        return ""


OPTIONS: dict[str, Option] = {}


def method_options(section: str, options: Mapping[str, Any]) -> CfgNode:
    """Section of a method below TRAINER, as its `defaults()` returns it."""
    return CfgNode({section: _declare(f"TRAINER.{section}.", options)})


def _declare(prefix: str, options: Mapping[str, Any]) -> CfgNode:
    node = CfgNode()
    for key, option in options.items():
        if isinstance(option, Mapping):
            node[key] = _declare(f"{prefix}{key}.", option)
        elif isinstance(option, Option):
            OPTIONS[prefix + key], node[key] = option, option.default
        else:
            node[key] = option
    return node


def problems_of(cfg: CfgNode, prefixes: str | tuple[str, ...]) -> list[str]:
    """Options below `prefixes` that are missing or out of range."""
    found = []
    for key, option in OPTIONS.items():
        if not key.startswith(prefixes):
            continue
        node: Any = cfg
        for part in key.split("."):
            if part not in node:
                return [f"{key} is missing: end extend_cfg() of train.py with trainers.extend_cfg(cfg)"]
            node = node[part]
        if problem := option.problem(node):
            found.append(f"{key} {problem}")
    return found


def extend_cfg(cfg: CfgNode) -> None:
    """Add what a config of the original lacks: options of all methods imported so far, and keys that methods read."""
    _fill(cfg, KEYS)
    for name in engine.TRAINER_REGISTRY.registered_names():
        if defaults := getattr(engine.TRAINER_REGISTRY.get(name), "defaults", None):
            _fill(cfg.TRAINER, defaults())


def _fill(node: CfgNode, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key not in node:
            node[key] = CfgNode(value) if isinstance(value, Mapping) else value
        elif isinstance(value, Mapping):
            _fill(node[key], value)


def build_lr_scheduler(optimizer: Any, optim_cfg: CfgNode, batches: int | None = None) -> Any:
    """The original's schedule, which is stepped once per epoch."""
    return optim.build_lr_scheduler(optimizer, optim_cfg)


distributed = SimpleNamespace(
    get_world_size=lambda: 1,
    get_rank=lambda: 0,
    is_main_process=lambda: True,
    all_gather_object=lambda value: [value],
    mean=lambda value: value,
    gather=lambda value: value,
)
"""The original has one process."""


class GradientProjection(NamedTuple):
    """Second loss of ProGrad, which the step here does not take."""

    loss: Tensor
    combine: Callable[[Tensor, Tensor], Tensor]


class Precision:
    """Precision of one run on one device: name, type of frozen weights, autocast, gradient scaler."""

    def __init__(self, name: str, device: torch.device):
        if name not in PRECISIONS:
            raise ValueError(f"precision is {name!r}, expected one of {', '.join(PRECISIONS)}")
        if device.type != "cuda":
            name = "fp32"
        elif name == "auto":
            name = "bf16" if torch.cuda.is_bf16_supported() else "amp"
        self.name, self.device = name, device
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
        self.half = {"amp": torch.float16}.get(name, self.dtype)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context for every forward pass; does nothing in fp32."""
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.name != "fp32")


class TrainerX(Original):
    """The original's trainer with the hooks, the precision and the step of this project's."""

    class_bound = False

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        kind = "adapts to test images" if getattr(self, "adapts", False) else ""
        if self._models and not getattr(self, "by_steps", True):
            kind = "does not learn by gradient steps"
        if kind:
            raise NotImplementedError(f"{type(self).__name__} {kind}: it needs the engine of ALIGN")

    def precision_name(self) -> str:
        return "fp32"

    def test_precision_name(self) -> str:
        return ""

    @cached_property
    def precision(self) -> Precision:
        return Precision(self.precision_name(), self.device)

    @cached_property
    def test_precision(self) -> Precision:
        name = self.test_precision_name()
        return Precision(name, self.device) if name else self.precision

    def classnames(self) -> list[str]:
        return list(self.dm.dataset.classnames)

    def parallel(self, module: nn.Module, find_unused_parameters: bool = False) -> nn.Module:
        return module

    def model_backward_and_update(
        self,
        loss: Tensor,
        names: Any = None,
        terms: Mapping[str, Tensor] | None = None,
        projection: GradientProjection | None = None,
        metrics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """One optimisation step; returns loss, terms and metrics."""
        if projection is not None:
            raise NotImplementedError(f"{type(self).__name__} projects gradients: it needs the engine of ALIGN")
        scaler = self.precision.scaler
        self.model_zero_grad(names)
        self.detect_anomaly(loss)
        scaler.scale(loss).backward()
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                scaler.step(self._optims[name])
        scaler.update()
        with torch.no_grad():
            self.after_step()
        found = {"loss": loss, **(terms or {}), **(metrics or {})}
        return {name: float(value.detach()) for name, value in found.items()}

    def after_step(self) -> None:
        """Hook after an optimisation step."""

    def before_inference(self) -> None:
        """Hook before an evaluation."""
        self.set_model_mode("eval")

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        self.before_inference()
        return super().test(split)

    def train(self) -> None:
        if self._models:
            super().train()
        else:
            self.test()  # nothing to learn

    # weights

    def extra_state(self) -> dict[str, Any]:
        return {}

    def resume_model_if_exist(self, directory: str) -> int:
        epoch = super().resume_model_if_exist(directory)
        if epoch and type(self).extra_state is not TrainerX.extra_state:
            raise ValueError(
                f"{type(self).__name__} keeps more than its weights, which checkpoints of the original do not hold: "
                "start again in an empty output folder"
            )
        return epoch

    def for_classes(self, path: str, checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return checkpoint["state_dict"]

    def adapt_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state_dict

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """As the original's, but the method has a say in what fits; an empty directory loads nothing."""
        for name in self.get_model_names() if directory else ():
            file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            path = os.path.join(directory, name, file)
            checkpoint = load_checkpoint(path)
            weights = self.adapt_state_dict(name, self.for_classes(path, checkpoint))
            self._models[name].load_state_dict(weights)
            logger.info("Load %s", path)
