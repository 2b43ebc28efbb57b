"""Compare the files of runs with the SHA-256 sums noted when they were written: `python -m dassl.verify RUN...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dassl.verify",
        description="Compare checkpoints, configs and results with the SHA-256 sums noted when they were written.",
        epilog="exit code: 0 all files are as they were written, 1 some are not, or nothing was noted",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN", type=Path, help="folder of a run, or of many")
    args = parser.parse_args(argv)

    from dassl.utils.checksums import problems_below

    bad = False
    for folder in args.folders:
        if not folder.is_dir():
            parser.error(f'there is no folder "{folder}"')
        right, problems = problems_below(folder)
        for line in problems:
            print(line)
        print(f"{folder}: {right} files are as they were written, {len(problems)} are not")
        bad = bad or bool(problems) or right == 0
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
