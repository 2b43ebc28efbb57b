"""Mean and spread of a figure over the runs below a folder, such as three seeds: `python parse_test_res.py DIRECTORY`.

A finished run is read from its result.json, with all digits. A folder of the original Dassl family has none and is read
from its log.txt: the last "* <keyword>: <number>%" after "Finish training" counts (after "=> result" with --test-log).
Runs of different data protocols are never averaged, and runs that are missing or failed are listed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dassl.engine.status import read_result, run_state
from experiments.reports.logs import END_SIGNALS, TEST_SIGNALS, last_figure


class Row(NamedTuple):
    """One run: folder, the figure in percent, hash of its data protocol ("" from a log), and result.json."""

    folder: Path
    value: float
    protocol: str
    result: Mapping[str, Any]


def read_run(folder: Path, keyword: str, signals: Sequence[str]) -> Row:
    """The figure of one run.

    Raises:
        ValueError: the run is not finished, or has no such figure; the message says what is there.
    """
    if (folder / "config.yaml").exists() or (folder / "result.json").exists():
        state = run_state(folder)
        if state != "done":
            why = f" ({(folder / 'FAILED').read_text(encoding='utf-8').strip()})" if state == "failed" else ""
            raise ValueError(f"the run is {state}{why}")
        result = read_result(folder)
        value = result.get(keyword) if isinstance(result, dict) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"result.json has no number called {keyword}")
        return Row(folder, float(value), str(result.get("protocol_hash", "")), result)
    log = folder / "log.txt"
    if not log.is_file():
        raise ValueError("there is neither result.json nor log.txt")
    return Row(folder, last_figure(log, keyword, signals), "", {})


def summarize(directory: Path, keyword: str, signals: Sequence[str], ci95: bool) -> tuple[float | None, int]:
    """Print every run of a folder and their mean; returns the mean (None without runs) and the number of errors.

    Raises:
        ValueError: the runs were measured on different data, class names, templates, transforms or backbones.
    """
    from dassl.engine.machine import machine_differences  # here, as it imports torch

    entries = sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    rows, problems = [], 0
    for entry in entries:
        try:
            row = read_run(entry, keyword, signals)
        except ValueError as err:
            print(f"missing: {entry}: {err}", file=sys.stderr)
            problems += 1
            continue
        rows.append(row)
        print(f"file: {entry}. {keyword}: {row.value:.2f}%")
    if not rows:
        print(f"missing: {directory}: no finished run in it", file=sys.stderr)
        return None, max(1, problems)
    if len({row.protocol for row in rows}) > 1:
        groups = ", ".join(f"{row.folder.name}: {row.protocol or 'unknown'}" for row in rows)
        raise ValueError(f"the runs in {directory} do not share one data protocol ({groups}) and cannot be averaged")
    values = [row.value for row in rows]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    for difference in machine_differences({row.folder.name: row.result for row in rows}):
        print(f"* averaged over different machines: {difference}")
    if ci95:
        spread *= 1.96 / math.sqrt(len(values))
    print(
        f"===\nSummary of directory: {directory}\n* {keyword}: {mean:.2f}% +- {spread:.2f}% ({len(values)} runs)\n==="
    )
    return mean, problems


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if runs are missing, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Mean and spread of a figure over the runs below a folder.")
    parser.add_argument("directory", type=Path, help="folder with one folder per run, or per experiment (--multi-exp)")
    parser.add_argument(
        "--ci95", action="store_true", help="95%% confidence interval in place of the standard deviation"
    )
    parser.add_argument("--test-log", action="store_true", help="logs of evaluations (--eval-only)")
    parser.add_argument("--multi-exp", action="store_true", help="the folder holds several experiments")
    parser.add_argument("--keyword", default="accuracy", help="figure to read: accuracy, macro_f1, ece, ...")
    args = parser.parse_args(argv)
    signals = TEST_SIGNALS if args.test_log else END_SIGNALS
    if not args.directory.is_dir():
        print(f'error: there is no folder "{args.directory}"', file=sys.stderr)
        return 2
    folders = [args.directory]
    if args.multi_exp:
        folders = sorted(entry for entry in args.directory.iterdir() if entry.is_dir() and entry.name[0] != ".")
    try:
        summaries = [summarize(folder, args.keyword, signals, args.ci95) for folder in folders]
    except ValueError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    means = [mean for mean, _ in summaries if mean is not None]
    if args.multi_exp and means:
        print(f"Average performance\n* {args.keyword}: {sum(means) / len(means):.2f}% ({len(means)} experiments)")
    return 1 if not summaries or any(problems for _, problems in summaries) else 0
