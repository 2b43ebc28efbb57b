"""The flags of sweep.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

FILTERS = ("task", "method", "trainer", "config", "dataset", "shots", "seed", "part")

COMMANDS = {
    "": "Do all runs of recipes; see also: status RECIPE, tune RECIPE",
    "status": "How far the runs of recipes are.",
    "tune": "Choose the options of a recipe's methods on validation images, as its section `tune` says.",
}

EPILOG = """\
exit code: 0 all runs are done, 1 some failed, 2 bad input, 3 time was over before the end, 4 zero-shot CLIP is not as
known on a data set, whose other runs were therefore left out (--no-gate does them), 130 interrupted

A recipe is a yaml file, or the name of one in recipes/. What is done is decided by the files of the runs alone, so a
sweep may be stopped at any moment, by Ctrl-C or by force, and started again; two sweeps may share a folder.
More: docs/sweeps.md
"""


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The flags of `sweep.py`, or those of its command `status` or `tune`."""
    parser = argparse.ArgumentParser(
        prog=f"sweep.py {command}".strip(),
        description=COMMANDS[command],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = 1 if command == "tune" else "+"
    parser.add_argument("recipes", metavar="RECIPE", nargs=number, help="yaml file, or name of one in recipes/")
    parser.add_argument("--root", metavar="DIR", help="folder of the data sets (default: $DATA or data)")
    parser.add_argument("--output", metavar="DIR", help="folder of all runs (default: $OUTPUT or output)")
    parser.add_argument("--trust", action="store_true", help="run modules from elsewhere that recipes import")
    if command == "tune":
        _add_retries(parser)
        _add_machine(parser)
        return parser
    parser.add_argument(
        "--only",
        metavar="KEY=VALUE,...",
        action="append",
        help=f"runs with these values, and what they need; keys: {', '.join(FILTERS)}; "
        "several values: method=CoOp,ALIGN*; may be repeated",
    )
    if command == "status":
        parser.set_defaults(feature_cache=False, dry_run=True)
        return parser
    parser.add_argument("--dry-run", action="store_true", help="show the runs, their state and their commands")
    parser.add_argument("--shuffle", metavar="SEED", type=_number(0), help="random order")
    _add_retries(parser)
    parser.add_argument("--no-gate", action="store_true", help="skip the sanity check of zero-shot CLIP; it is noted")
    parser.add_argument(
        "--feature-cache",
        action="store_true",
        help="evaluate methods that leave the image tower as it is from image features on disk (TEST.FEATURE_CACHE)",
    )
    _add_machine(parser)
    jobs = parser.add_argument_group("as jobs, through submitit")
    kinds = jobs.add_mutually_exclusive_group()
    kinds.add_argument("--slurm", action="store_true", help="submit an array of jobs to Slurm and return")
    kinds.add_argument("--local-executor", action="store_true", help="the same jobs as processes of this machine")
    jobs.add_argument("--partition", metavar="NAME", help="of Slurm")
    jobs.add_argument("--time", metavar="MINUTES", type=_number(1), default=240, help="of a job (default 240)")
    jobs.add_argument("--gpus-per-job", metavar="N", type=_number(0), default=1, help="(default 1)")
    jobs.add_argument("--cpus-per-job", metavar="N", type=_number(1), default=8, help="(default 8)")
    jobs.add_argument("--mem-gb", metavar="N", type=_number(1), help="memory of a job")
    jobs.add_argument(
        "--slurm-option", metavar="KEY=VALUE", action="append", help="of sbatch, such as account=vision; repeatable"
    )
    return parser


def _add_retries(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retries", metavar="N", type=_number(0), default=1, help="of a run that fails (default 1)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    here = parser.add_argument_group("on this machine")
    here.add_argument(
        "--jobs", metavar="N", type=_number(1), help="runs at a time (default: one per GPU, or 1); of a cluster: jobs"
    )
    here.add_argument("--gpus", metavar="LIST", default="auto", help="such as 0,1; auto: all; none (default auto)")
    here.add_argument(
        "--threads", metavar="N", type=_number(1), help="CPU threads of a run (default: cores / jobs without GPU)"
    )
    here.add_argument("--max-minutes", metavar="M", type=_minutes, help="then stop, to be continued later")


def _number(lowest: int) -> Any:
    def convert(text: str) -> int:
        if text.isdigit() and int(text) >= lowest:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number from {lowest}")

    return convert


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise argparse.ArgumentTypeError(f"{text!r}, expected minutes above 0")
    return minutes


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (default: of this process); `command` says which of COMMANDS it is."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--tune" in words:
        words = ["tune", *(word for word in words if word != "--tune")]
    command = words[0] if words and words[0] in ("status", "tune") else ""
    args = build_parser(command).parse_args(words[1:] if command else words)
    args.command = command
    return args
