"""The flags of train.py."""

from __future__ import annotations

import argparse

EPILOG = """\
KEY VALUE pairs come last and set any key of the config, for example
  OPTIM.MAX_EPOCH 50 DATASET.NUM_SHOTS 16 TRAINER.COOP.N_CTX 4

Later wins: defaults of the engine and of the methods, data set file, config file, flags, KEY VALUE pairs.

A run is continued, or its result used again, by starting it once more with the same --output-dir.
With several processes: torchrun --nproc_per_node 2 train.py ...
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags of Dassl's train.py, and --import, --print-config and --verbose-errors."""
    parser = argparse.ArgumentParser(
        description="Train or evaluate one method on one data set.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--root", metavar="DIR", help="folder that holds the data sets")
    data.add_argument("--dataset-config-file", metavar="YAML", help="data set: its name, or a config")
    data.add_argument("--source-domains", metavar="NAME", nargs="+", help="domains to train on")
    data.add_argument("--target-domains", metavar="NAME", nargs="+", help="domains to test on")
    data.add_argument("--transforms", metavar="NAME", nargs="+", help="augmentations, see docs/engine.md")
    method = parser.add_argument_group("method")
    method.add_argument("--trainer", metavar="NAME", help="method, such as CoOp")
    method.add_argument("--config-file", metavar="YAML", help="config of the method, configs/trainers/*/*.yaml")
    method.add_argument("--backbone", metavar="NAME", help="name of the backbone or path of its weights")
    method.add_argument("--head", metavar="NAME", help="head of the network, for trainers that have one")
    method.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        help="module, or path of a .py file, that registers your own trainers or data sets; may be repeated",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", metavar="DIR", help="folder for everything the run writes (default ./output)")
    run.add_argument("--resume", metavar="DIR", help="folder of another run to continue from")
    run.add_argument("--seed", metavar="N", type=int, help="0 or more makes the run repeatable; negative: random")
    run.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    run.add_argument(
        "--model-dir", metavar="DIR", help="folder of the trained run, for --eval-only (default: --output-dir)"
    )
    run.add_argument(
        "--load-epoch",
        metavar="N",
        type=_epoch,
        help="checkpoint for --eval-only: a number of epochs or last (default: the best on validation data, else last)",
    )
    run.add_argument("--no-train", action="store_true", help="build everything, then stop")
    run.add_argument(
        "--print-config", action="store_true", help="print the whole config that the run would have, then stop"
    )
    run.add_argument("--verbose-errors", action="store_true", help="show the traceback of every error")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and their values")
    return parser


def _epoch(text: str) -> int | str:
    if text == "last":
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not an epoch: expected a number from 1, or last")
