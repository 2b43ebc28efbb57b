"""Do all runs of one or more recipes: `python sweep.py --help`.

python sweep.py RECIPE...           do what is not done yet, continue what was stopped, retry what failed
python sweep.py status RECIPE...    how far it is
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import random
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dassl.engine.status import run_state
from dassl.utils.errors import error_line
from experiments import Run, expand, load_recipe, with_needs
from experiments.recipe import INSTALLED, ROOT, WORK
from experiments.status import run_status
from experiments.sweeps import cluster
from experiments.sweeps.event_log import EventLog
from experiments.sweeps.local import LocalSweep, Summary
from experiments.sweeps.progress import Durations, status_table
from experiments.sweeps.sanity_check import SanityCheck

FILTERS = ("task", "method", "trainer", "config", "dataset", "shots", "seed", "part")
FAILED, BAD_INPUT, NOT_FINISHED, OFF, INTERRUPTED = 1, 2, 3, 4, 130

EPILOG = """\
exit code: 0 all runs are done, 1 some failed, 2 bad input, 3 time was over before the end, 4 zero-shot CLIP is not as
known on a data set, whose other runs were therefore left out (--no-gate does them), 130 interrupted

A recipe is a yaml file, or the name of one in recipes/. What is done is decided by the files of the runs alone, so a
sweep may be stopped at any moment, by Ctrl-C or by force, and started again; two sweeps may share a folder.
More: docs/sweeps.md
"""


def build_parser(status: bool = False) -> argparse.ArgumentParser:
    """The flags of `sweep.py`, or those of `sweep.py status`."""
    parser = argparse.ArgumentParser(
        prog="sweep.py status" if status else "sweep.py",
        description="How far the runs of recipes are." if status else "Do all runs of recipes; see also: status RECIPE",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="yaml file, or name of one in recipes/")
    parser.add_argument("--root", metavar="DIR", help="folder of the data sets (default: $DATA or data)")
    parser.add_argument("--output", metavar="DIR", help="folder of all runs (default: $OUTPUT or output)")
    parser.add_argument(
        "--only",
        metavar="KEY=VALUE,...",
        action="append",
        help=f"runs with these values, and what they need; keys: {', '.join(FILTERS)}; "
        "several values: method=CoOp,ALIGN*; may be repeated",
    )
    if status:
        parser.set_defaults(feature_cache=False)
        return parser
    parser.add_argument("--dry-run", action="store_true", help="show the runs, their state and their commands")
    parser.add_argument("--shuffle", metavar="SEED", type=_number(0), help="random order")
    parser.add_argument("--retries", metavar="N", type=_number(0), default=1, help="of a run that fails (default 1)")
    parser.add_argument("--no-gate", action="store_true", help="skip the sanity check of zero-shot CLIP; it is noted")
    parser.add_argument(
        "--feature-cache",
        action="store_true",
        help="evaluate methods that leave the image tower as it is from image features on disk (TEST.FEATURE_CACHE)",
    )
    here = parser.add_argument_group("on this machine")
    here.add_argument(
        "--jobs", metavar="N", type=_number(1), help="runs at a time (default: one per GPU, or 1); of a cluster: jobs"
    )
    here.add_argument("--gpus", metavar="LIST", default="auto", help="such as 0,1; auto: all; none (default auto)")
    here.add_argument(
        "--threads", metavar="N", type=_number(1), help="CPU threads of a run (default: cores / jobs without GPU)"
    )
    here.add_argument("--max-minutes", metavar="M", type=_minutes, help="then stop, to be continued later")
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


def gather(args: argparse.Namespace) -> tuple[list[Run], list[Run], Path]:
    """The chosen runs of all recipes, each once; all runs of the recipes; and the folder of all runs.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: a faulty recipe, two recipes that want different runs in one folder, or a filter without a match.
    """
    output = Path(args.output or os.environ.get("OUTPUT") or WORK / "output").absolute()
    found: dict[str, Run] = {}
    for name in args.recipes:
        for run in expand(load_recipe(name), args.root and Path(args.root).absolute(), output):
            if args.feature_cache:
                run = replace(run, argv=(*run.argv, "TEST.FEATURE_CACHE", "True"))
            earlier = found.setdefault(run.key, run)
            if earlier.argv != run.argv:
                raise ValueError(f"the recipes want different runs in the folder {run.key}; use another --output")
    runs = list(found.values())
    return choose(runs, args.only or []), runs, output


def choose(runs: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    """The runs that match, and those they need.

    Args:
        filters: texts such as "method=CoOp,ALIGN*,seed=1": patterns of file names, of which one per key must match.

    Raises:
        ValueError: a key that does not exist, or a value that no run has.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key = ""
        for piece in text.split(","):
            key, value = piece.split("=", 1) if "=" in piece else (key, piece)
            if key not in FILTERS:
                raise ValueError(f"--only {text!r}: expected KEY=VALUE with one of {', '.join(FILTERS)}")
            wanted.setdefault(key, []).append(value)
    for key, patterns in wanted.items():
        known = list(dict.fromkeys(str(getattr(run, key)) for run in runs))
        for pattern in patterns:
            if not fnmatch.filter(known, pattern):
                raise ValueError(f"--only: no run has {key} {pattern!r}, there is {', '.join(known)}")
    chosen = [
        run
        for run in runs
        if all(
            any(fnmatch.fnmatchcase(str(getattr(run, key)), pattern) for pattern in patterns)
            for key, patterns in wanted.items()
        )
    ]
    if not chosen:
        raise ValueError(f"--only {' '.join(filters)}: no run has all of these values")
    return with_needs(chosen, runs)


def shuffled(runs: Sequence[Run], seed: int) -> list[Run]:
    """The runs in a random order, what needs each other together."""
    groups = cluster.chains(runs)
    random.Random(seed).shuffle(groups)
    return [run for group in groups for run in group]


def find_devices(text: str) -> list[str]:
    """GPUs to use, as values of CUDA_VISIBLE_DEVICES; a value of that variable limits what there is.

    Raises:
        ValueError: a GPU is asked for that does not exist.
    """
    if text == "none":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if text == "auto":
        return there if torch.cuda.device_count() else []
    chosen = text.split(",")
    if not set(chosen) <= set(there):
        raise ValueError(f"--gpus {text}: there is {', '.join(there) or 'no GPU'}")
    return chosen


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_sanity_check(
    args: argparse.Namespace, chosen: Sequence[Run], runs: Sequence[Run], output: Path
) -> SanityCheck | None:
    """Sanity check of zero-shot CLIP against known figures, announced on the screen; None with --no-gate."""
    sanity_check = SanityCheck(runs)
    if not args.no_gate:
        print(sanity_check.summary(chosen))
        return sanity_check
    EventLog(output).write("no-gate", "", error=" ".join(args.recipes))
    print("sanity check: off (--no-gate)")
    return None


def do_here(args: argparse.Namespace, runs: Sequence[Run], output: Path, sanity_check: SanityCheck | None) -> Summary:
    """Do the runs as processes of this machine."""
    devices = find_devices(args.gpus)
    jobs = args.jobs or max(len(devices), 1)
    threads = args.threads
    if threads is None and not devices and "OMP_NUM_THREADS" not in os.environ:
        threads = max(cores() // jobs, 1)
    sweep = LocalSweep(
        runs,
        output,
        jobs=jobs,
        devices=devices if devices else ([""] if args.gpus == "none" else []),
        threads=threads,
        retries=args.retries,
        deadline=None if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes,
        sanity_check=sanity_check,
    )
    signal.signal(signal.SIGTERM, _terminate)
    return sweep.run()


def _terminate(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def do_as_jobs(
    args: argparse.Namespace, runs: Sequence[Run], output: Path, sanity_check: SanityCheck | None
) -> Summary | None:
    """Do the runs as jobs, zero-shot runs that are compared first; None if they were only submitted."""
    if args.max_minutes is not None:
        raise ValueError("--max-minutes is of no use for jobs, which have --time")
    kind = "slurm" if args.slurm else "local"
    parameters = {
        "timeout_min": args.time,
        "gpus_per_node": args.gpus_per_job if args.slurm or torch.cuda.device_count() else 0,
        "cpus_per_task": args.cpus_per_job,
        "mem_gb": args.mem_gb,
        "slurm_partition": args.partition,
    }
    extra = dict(option.split("=", 1) if "=" in option else (option, True) for option in args.slurm_option or [])
    if extra:
        parameters["slurm_additional_parameters"] = extra
    parameters = {key: value for key, value in parameters.items() if value is not None}
    ended = {run.key for run in runs if run_state(run.output_dir) == "done"}
    errors = {run.key: error for run in runs if run.key in ended and (error := run_status(run).error)}
    groups = [group for group in cluster.chains(runs) if any(run.key not in ended for run in group)]
    groups.sort(key=lambda group: sanity_check is None or not any(run.key in sanity_check.keys for run in group))
    work = [cluster.Chain(group, output, args.threads, args.retries, sanity_check) for group in groups]
    done = ended.difference(errors)
    print(f"{len(done)} of {len(runs)} runs are done already; {len(work)} jobs")
    if not work:
        return Summary(tuple(done), errors, ())
    made = cluster.executor(kind, output, args.jobs or (100 if args.slurm else 1), parameters)
    if args.slurm:
        for key, error in errors.items():
            print(f"failed: {key}: {error}")
        identifiers = cluster.submit_slurm(made, work)
        print(f"submitted {identifiers[0]} to {identifiers[-1]}; python sweep.py status shows how far they are")
        return None
    summary = cluster.run_local(made, work, args.jobs or 1)
    return summary._replace(done=tuple(done.union(summary.done)), errors={**errors, **summary.errors})


def show_runs(runs: Sequence[Run], output: Path) -> None:
    """Print a line with the state and one with the command of every run (--dry-run)."""
    last = EventLog(output).last()
    for run in runs:
        print(f"# {run_status(run, last).state}: {run.key}")
        script = "align-prompt train" if INSTALLED else f"python {shlex.quote(str(ROOT / 'train.py'))}"
        print(f"{script} {shlex.join(run.argv)}")


def show_status(runs: Sequence[Run], output: Path, sanity_check: SanityCheck) -> None:
    """Print the table of `status`."""
    event_log = EventLog(output)
    events = event_log.read()
    last = {event.key: event for event in events}
    statuses = {run.key: run_status(run, last) for run in runs}
    durations = Durations()
    durations.add_finished([run for run in runs if statuses[run.key].state == "done"], events)
    print(status_table(runs, statuses, durations))
    for check in sanity_check.checks():
        print(check.line())


def show_end(summary: Summary) -> int:
    """Say how it ended; returns the exit code."""
    for err in summary.off:
        print(f"error: {err}", file=sys.stderr)
    if summary.errors:
        print(f"{len(summary.errors)} runs failed{' or were left out' if summary.off else ''}:")
        for key, error in summary.errors.items():
            print(f"  {key}: {error}")
    if summary.errors or summary.off:
        return OFF if summary.off else FAILED
    if summary.left:
        print(f"{len(summary.left)} runs are left; the same command continues")
        return NOT_FINISHED
    print(f"all {len(summary.done)} runs are done")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    status = words[:1] == ["status"]
    args = build_parser(status).parse_args(words[1:] if status else words)
    try:
        runs, everything, output = gather(args)
        if status:
            show_status(runs, output, SanityCheck(everything))
            return 0
        if args.shuffle is not None:
            runs = shuffled(runs, args.shuffle)
        if args.dry_run:
            show_runs(runs, output)
            return 0
        as_jobs = args.slurm or args.local_executor
        sanity_check = open_sanity_check(args, runs, everything, output)
        summary = do_as_jobs(args, runs, output, sanity_check) if as_jobs else do_here(args, runs, output, sanity_check)
    except (ValueError, OSError, ImportError) as err:
        print(f"error: {error_line(err)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0 if summary is None else show_end(summary)


if __name__ == "__main__":
    sys.exit(main())
