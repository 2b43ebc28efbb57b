"""scripts/quickstart.sh from an empty folder to its table: the whole and what each method takes of it.

Needs the environment the script sets up. Data and runs go to a temporary folder. `other` is the start of programs,
preparing the data, and the table and chart. Seconds are by the clock, `cpu_s` processor seconds of all threads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from dassl.utils import read_json

from .report import show

ROOT = Path(__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=["ZeroshotCLIP", "CoOp", "ALIGN"],
        help="as METHODS of the script",
    )


def run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"DATA": str(folder / "data"), "OUTPUT": str(folder), "METHODS": " ".join(arguments.methods)}
        before, start = os.times(), time.perf_counter()
        child = subprocess.run(
            ["bash", str(ROOT / "scripts" / "quickstart.sh")],
            capture_output=True,
            text=True,
            env={**os.environ, **places},
        )
        whole, after = time.perf_counter() - start, os.times()
        if child.returncode:
            raise RuntimeError(f"scripts/quickstart.sh ended with status {child.returncode}:\n{child.stderr[-2000:]}")
        figures = {
            "whole_s": whole,
            "cpu_s": after.children_user + after.children_system - before.children_user - before.children_system,
        }
        for method in arguments.methods:
            result = read_json(folder / "quickstart" / method / "result.json")
            figures[f"{method}_s"] = result["elapsed_seconds"]
        figures["other_s"] = whole - sum(value for key, value in figures.items() if key not in ("whole_s", "cpu_s"))
    show("quickstart", {key: round(value, 2) for key, value in figures.items()}, {})
