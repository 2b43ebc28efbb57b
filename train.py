"""Train or evaluate one method on one data set: `python train.py --help`.

This file names no method and no data set. Both are registered by the packages `trainers` and `datasets`, or by a file
of your own given with --import, and chosen in the config.
"""

from typing import Any

import datasets  # noqa: F401 - registers the data sets
import trainers  # noqa: F401 - registers the methods
from dassl.config.flags import build_parser


def __getattr__(name: str) -> Any:
    if name in ("build_config", "main", "run"):
        from dassl.engine import command  # imports torch

        return getattr(command, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    build_parser().parse_args()  # --help and unknown flags end here, before torch is imported
    from dassl.engine.command import main

    main()
