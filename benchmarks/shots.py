"""Cost of a whole training against the number of shots, for any methods, on embedded data.

Every method has its settings for the embedded model and trains in a separate process, from reading the first image to
the last step, without the start of Python and without an evaluation. Seconds are processor seconds of all threads.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from . import methods
from .align_step import Clock
from .report import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", default=["CoOp", "MaPLe", "TipAdapter", "ALIGN"], help="trainers"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="default 1 2 4 8 16")
    parser.add_argument(
        "--dataset", default="emoji_groups_flat", metavar="NAME", help="config file (default %(default)s: 68 classes)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--root", default=str(methods.ROOT / "data"), help="folder of the data sets")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def train_once(arguments: argparse.Namespace) -> float:
    """Seconds of one training in this process."""
    torch.set_num_threads(arguments.threads)
    (shots,) = arguments.shots
    with tempfile.TemporaryDirectory() as output:
        config = methods.config_file(arguments.worker, "emoji")
        options = {"DATASET.NUM_SHOTS": shots, "TEST.NO_TEST": True, "VERBOSE": False, "DATALOADER.NUM_WORKERS": 0}
        argv = methods.flags(arguments.worker, config, arguments.dataset, arguments.root, output, options)
        trainer = methods.trainer_of(argv)
        with Clock() as clock:
            trainer.train()
    return clock.seconds["cpu"]


def run(arguments: argparse.Namespace) -> None:
    if arguments.worker is not None:
        print(train_once(arguments))
        return
    methods.check_names(arguments.methods)
    for method in arguments.methods:
        for shots in arguments.shots:
            options = {key: getattr(arguments, key) for key in ("dataset", "threads", "root")}
            figures = {"train_s": round(methods.ask_worker("shots", method, options | {"shots": shots}), 2)}
            show("shots", figures, {"method": method, "shots": shots, "dataset": arguments.dataset})
