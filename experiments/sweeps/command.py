"""The commands `python sweep.py`, `python sweep.py status` and `python sweep.py tune`."""

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

from dassl.config.imports import run_only
from dassl.engine.status import run_state
from dassl.utils.errors import error_line
from experiments import Run, expand, load_recipe, with_needs
from experiments.recipe import INSTALLED, ROOT, WORK
from experiments.status import run_status
from experiments.sweeps import cluster
from experiments.sweeps.event_log import EventLog
from experiments.sweeps.flags import FILTERS, parse
from experiments.sweeps.local import LocalSweep, Summary
from experiments.sweeps.progress import Durations, status_table
from experiments.sweeps.sanity_check import SanityCheck

FAILED, BAD_INPUT, NOT_FINISHED, OFF, INTERRUPTED = 1, 2, 3, 4, 130


def output_folder(args: argparse.Namespace) -> Path:
    """The folder of all runs."""
    return Path(args.output or os.environ.get("OUTPUT") or WORK / "output").absolute()


def gather(args: argparse.Namespace) -> tuple[list[Run], list[Run], Path]:
    """The chosen runs of all recipes, each once; all runs of the recipes; and the folder of all runs.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: a faulty recipe, two recipes that want different runs in one folder, or a filter without a match.
    """
    output = output_folder(args)
    found: dict[str, Run] = {}
    for name in args.recipes:
        recipe = load_recipe(name)
        if recipe.untrusted and not args.dry_run:
            raise ValueError(f'recipe "{name}" imports modules: {recipe.untrusted}')
        if recipe.untrusted:
            print(f'note: recipe "{name}" is shown without its imports: {recipe.untrusted}', file=sys.stderr)
        for run in expand(recipe, args.root and Path(args.root).absolute(), output):
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


def deadline_of(args: argparse.Namespace) -> float | None:
    """End of --max-minutes from now on, of time.monotonic()."""
    return None if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes


def do_here(
    args: argparse.Namespace,
    runs: Sequence[Run],
    output: Path,
    sanity_check: SanityCheck | None,
    deadline: float | None,
) -> Summary:
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
        deadline=deadline,
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


def tune(args: argparse.Namespace) -> Summary:
    """Do the trials of a recipe's section `tune`, then write the chosen configs and the report."""
    from experiments.tuning import Tuning

    recipe, output, deadline = load_recipe(args.recipes[0]), output_folder(args), deadline_of(args)
    if recipe.untrusted:
        raise ValueError(f'recipe "{args.recipes[0]}" imports modules: {recipe.untrusted}')
    tuning = Tuning(recipe, args.root and Path(args.root).absolute(), output)
    return tuning.run(lambda runs: do_here(args, runs, tuning.folder, None, deadline))


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
    args = parse(argv)
    run_only(None if args.trust else (ROOT,))
    try:
        if args.command == "tune":
            return show_end(tune(args))
        runs, everything, output = gather(args)
        if args.command == "status":
            show_status(runs, output, SanityCheck(everything))
            return 0
        if args.shuffle is not None:
            runs = shuffled(runs, args.shuffle)
        if args.dry_run:
            show_runs(runs, output)
            return 0
        as_jobs = args.slurm or args.local_executor
        sanity_check = open_sanity_check(args, runs, everything, output)
        if as_jobs:
            summary = do_as_jobs(args, runs, output, sanity_check)
        else:
            summary = do_here(args, runs, output, sanity_check, deadline_of(args))
    except (ValueError, OSError, ImportError) as err:
        print(f"error: {error_line(err)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0 if summary is None else show_end(summary)
