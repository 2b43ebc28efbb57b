"""Writing and reading checkpoints of methods and a backbone, against torch.save and torch.load of the same content.

A method's checkpoint holds what is learned and the momentum of SGD; the backbone has ViT-B/16's shape and random
weights. Ours are written beside their place, flushed to the disk and renamed, and read without running stored code;
the plain way does neither. Seconds are by the clock, median of all rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import clip
from clip import CLIP
from dassl.utils import load_checkpoint, save_checkpoint
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import TextContext

from .align_step import VIT_B16
from .report import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured, in turn (default %(default)s)")


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of every way, each measured in turn, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def of_method(learner: nn.Module, folder: Path, rounds: int) -> dict[str, float]:
    """Figures of a checkpoint of a run."""
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    for parameter in learner.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = {"state_dict": learner.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    plain, ours = folder / "plain.pt", folder / "model.pth.tar-1"
    found = seconds(
        {
            "save": lambda: save_checkpoint(state, folder),
            "plain_save": lambda: torch.save(state, plain),
            "load": lambda: load_checkpoint(ours),
            "plain_load": lambda: torch.load(plain, weights_only=True),
        },
        rounds,
    )
    return {**figures(found), "mib": ours.stat().st_size / 2**20}


def of_backbone(model: CLIP, folder: Path, rounds: int) -> dict[str, float]:
    """Figures of a whole CLIP; plain is a state dict, read into a model that is made as usual."""
    plain, ours = folder / "plain.pt", folder / "clip.safetensors"

    def load_plain() -> None:
        CLIP(**VIT_B16).load_state_dict(torch.load(plain, weights_only=True))

    found = seconds(
        {
            "save": lambda: clip.save_model(model, ours),
            "plain_save": lambda: torch.save(model.state_dict(), plain),
            "load": lambda: clip.load(str(ours), device="cpu"),
            "plain_load": load_plain,
        },
        rounds,
    )
    return {**figures(found), "mib": ours.stat().st_size / 2**20}


def figures(found: dict[str, float]) -> dict[str, float]:
    ratios = {f"{name} / plain": found[name] / found[f"plain_{name}"] for name in ("save", "load")}
    return {**{f"{name}_s": value for name, value in found.items()}, **ratios}


def run(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = CLIP(**VIT_B16)
    names = [f"class {k}" for k in range(100)]
    learners = {
        "CoOp": TextContext(model, names, 16),
        "ALIGN": MultiModeLearner(model, names, 2, 9, 4, 4, "a photo of a"),
    }
    with tempfile.TemporaryDirectory() as name:
        found = {method: of_method(learner, Path(name), arguments.rounds) for method, learner in learners.items()}
        found["backbone"] = of_backbone(model, Path(name), arguments.rounds)
    for content, values in found.items():
        show("checkpoint", {key: float(f"{value:.4g}") for key, value in values.items()}, {"of": content})
