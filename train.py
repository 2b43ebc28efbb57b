"""Train or evaluate one method on one data set: `python train.py --help`.

This file names no method and no data set. Both are registered by the packages `trainers` and `datasets`, or by a file
of your own given with --import, and chosen in the config.
"""

import datasets  # noqa: F401 - registers the data sets
import trainers  # noqa: F401 - registers the methods
from dassl.engine.command import build_config, build_parser, main, run

__all__ = ["build_config", "build_parser", "main", "run"]

if __name__ == "__main__":
    main()
