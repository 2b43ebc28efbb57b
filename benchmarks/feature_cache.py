"""Evaluations of many CoOp checkpoints on one data set, from images and from cached image features.

The checkpoints, of several shot counts and seeds, hold random contexts: an evaluation costs the same whatever they have
learned. In one process a trainer is built once and every checkpoint is loaded and tested in turn; with the cache the
first evaluation, which fills it, is counted too. In separate processes every evaluation is a run of train.py, once
as sweep.py does it, forked from a process that has imported everything, once as a start of the program.
Seconds are processor seconds of all threads and, in the figures named so, by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from dassl.engine import command

from . import methods
from .methods import ROOT
from .report import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", default="emoji_groups", metavar="NAME", help="config file (default %(default)s: 2,896 test images)"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="default 1 2 4 8 16")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default 1 2 3")
    parser.add_argument("--processes", type=int, default=2, help="runs of each kind (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--root", default=str(ROOT / "data"), help="folder of the data sets (default %(default)s)")


def flags(arguments: argparse.Namespace, output: Path, cache: Path | None) -> list[str]:
    """Arguments of train.py; without a folder for the cache there is none."""
    options: dict[str, object] = {
        "DATASET.NUM_SHOTS": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "VERBOSE": False,
        "OPTIM.MAX_EPOCH": 1,
    }
    if cache is not None:
        options |= {"TEST.FEATURE_CACHE": True, "DATASET.CACHE_DIR": str(cache)}
    config = methods.config_file("CoOp", "emoji")
    return methods.flags("CoOp", config, arguments.dataset, arguments.root, str(output), options)


def write_checkpoints(trainer, arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """A folder with a checkpoint for every shot count and seed."""
    folders = [folder / f"shots_{shots}" / f"seed{seed}" for shots in arguments.shots for seed in arguments.seeds]
    for number, path in enumerate(folders):
        torch.manual_seed(number)
        torch.nn.init.normal_(trainer.model.learner.ctx, std=0.02)
        trainer.save_model(0, str(path))
    return folders


class Times(NamedTuple):
    """Processor seconds, of this process or of its children, and seconds by the clock."""

    processor: float
    clock: float


def evaluate_all(trainer, folders: list[Path]) -> tuple[list[float], Times]:
    """Accuracy of every checkpoint, and the seconds of all."""
    accuracies = []
    processor, clock = time.process_time(), time.perf_counter()
    for folder in folders:
        trainer.load_model(str(folder), epoch=1)
        accuracies.append(trainer.test())
    return accuracies, Times(time.process_time() - processor, time.perf_counter() - clock)


def fork_seconds(argv: list[str], threads: int) -> float:
    """Processor seconds of an evaluation in a process like those of a sweep."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweeps.worker"])
    ours, theirs = context.Pipe()
    child = context.Process(target=evaluate_forked, args=(argv, threads, theirs))
    child.start()
    theirs.close()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"a forked evaluation ended with status {child.exitcode}")
    return ours.recv()


def evaluate_forked(argv: list[str], threads: int, answer: Connection) -> None:
    torch.set_num_threads(threads)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        command.run(argv)
    answer.send(time.process_time())


def start_seconds(argv: list[str], _threads: int) -> float:
    """Processor seconds of a start of train.py."""
    before = os.times()
    child = subprocess.run([sys.executable, str(ROOT / "train.py"), *argv], capture_output=True, text=True)
    after = os.times()
    if child.returncode:
        raise RuntimeError(f"train.py ended with status {child.returncode}:\n{child.stderr[-2000:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        plain = methods.trainer_of(flags(arguments, folder / "a", None))
        cached = methods.trainer_of(flags(arguments, folder / "b", cache))
        checkpoints = write_checkpoints(plain, arguments, folder / "checkpoints")
        expected, without = evaluate_all(plain, checkpoints)
        found, filled = evaluate_all(cached, checkpoints)
        again, read = evaluate_all(cached, checkpoints)
        if not expected == found == again:
            raise RuntimeError(f"accuracies differ: {expected}, with the cache {found} and {again}")
        starts: dict[str, list[float]] = {}
        for kind, seconds_of in (("sweep", fork_seconds), ("start", start_seconds)):
            for way, place in (("without", None), ("with", cache)):
                starts[f"{kind}_{way}_s"] = []
                for k in range(arguments.processes):
                    checkpoint = ["--eval-only", "--model-dir", str(checkpoints[k % len(checkpoints)])]
                    argv = [*checkpoint, *flags(arguments, folder / f"{kind}_{way}_{k}", place)]
                    starts[f"{kind}_{way}_s"].append(seconds_of(argv, arguments.threads))
        size = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
        images = len(plain.dm.dataset.test)
    figures = {
        "without_s": without.processor,
        "first_time_s": filled.processor,
        "again_s": read.processor,
        "without / first_time": without.processor / filled.processor,
        "without / again": without.processor / read.processor,
        "without / first_time, clock": without.clock / filled.clock,
        "without / again, clock": without.clock / read.clock,
        "file_mib": size / 2**20,
    }
    if arguments.processes:
        figures |= {name: sum(seconds) / arguments.processes for name, seconds in starts.items()}
        for kind in ("sweep", "start"):
            figures[f"{kind} ratio"] = figures[f"{kind}_without_s"] / figures[f"{kind}_with_s"]
    settings = {"dataset": arguments.dataset, "images": images, "checkpoints": len(checkpoints)}
    settings |= {"threads": arguments.threads}
    show("feature_cache", {key: float(f"{value:.4g}") for key, value in figures.items()}, settings)
