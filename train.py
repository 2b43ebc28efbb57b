"""Train or evaluate one method on one data set: `python train.py --help`.

This file names no method and no data set. Both are registered by the packages `trainers` and `datasets`, or by a file
of your own given with --import, and chosen in the config.
"""

import sys
from collections.abc import Sequence
from typing import Any

import datasets  # registers the data sets
import dense  # registers the dense tasks and their data sets
import trainers  # registers the methods
from dassl.config.flags import build_parser


def __getattr__(name: str) -> Any:
    if name in ("build_config", "main", "run"):
        from dassl.engine import command  # imports torch

        return getattr(command, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def start(argv: Sequence[str]) -> None:
    """Parse and run; --help, unknown flags and a run that is done already end before torch is imported."""
    args = build_parser().parse_args(argv)
    from dassl.engine.finished import done_already

    if done_already(args, argv, [*trainers.__path__, *datasets.__path__, *dense.__path__]):
        print(f"{args.output_dir or 'output'} is done already; its result is used again")
        return
    from dassl.engine.command import main

    main(argv)


if __name__ == "__main__":
    start(sys.argv[1:])
