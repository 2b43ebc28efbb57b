"""Runs as jobs of a cluster, through submitit (an optional package).

A job is a chain: a training and the evaluations of what it has trained. Inside a job the scheduler of `local` does the
chain, one run at a time, so that locks, retries and the skipping of finished runs are the same everywhere. A job that
is preempted or runs out of time is put into the queue again and continues after the last whole epoch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import Run
from experiments.recipe import SEARCH
from experiments.sweeps.local import LocalSweep, Summary
from experiments.sweeps.sanity_check import SanityCheck

REQUEUES = 20  # times that one job may run out of its time


class Chain:
    """The work of one job: runs in order, each after those it needs. Called by submitit in the job."""

    def __init__(
        self,
        runs: Sequence[Run],
        output: Path,
        threads: int | None = None,
        retries: int = 1,
        sanity_check: SanityCheck | None = None,
    ):
        self.runs, self.output, self.threads, self.retries = tuple(runs), output, threads, retries
        self.sanity_check = sanity_check

    def __call__(self) -> Summary:
        return LocalSweep(
            self.runs,
            self.output,
            threads=self.threads,
            retries=self.retries,
            forks=True,
            sanity_check=self.sanity_check,
        ).run()

    def checkpoint(self) -> Any:
        """Requeue a preempted job: the same chain, which skips finished runs."""
        return _submitit().helpers.DelayedSubmission(
            Chain(self.runs, self.output, self.threads, self.retries, self.sanity_check)
        )


def chains(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """The runs in groups that need each other, in the order of their first runs."""
    groups: dict[str, list[Run]] = {}
    head: dict[str, str] = {}
    for run in runs:  # each comes after those it needs
        first = head[run.needs[0]] if run.needs else run.key
        head[run.key] = first
        groups.setdefault(first, []).append(run)
    return [tuple(group) for group in groups.values()]


def executor(kind: str, output: Path, jobs: int, parameters: Mapping[str, Any]) -> Any:
    """A submitit executor whose files are below output/submitit.

    Args:
        kind: "slurm" or "local".
        jobs: how many jobs of an array may run at a time; only Slurm knows such a limit.
        parameters: of submitit's update_parameters, such as timeout_min, gpus_per_node or slurm_partition.

    Raises:
        ImportError: submitit is not installed.
        OSError: there is no Slurm on this machine.
    """
    submitit = _submitit()
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(SEARCH) not in paths:  # jobs start in any folder
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SEARCH), *paths])
    slurm = {"slurm_max_num_timeout": REQUEUES} if kind == "slurm" else {}
    try:
        made = submitit.AutoExecutor(output / "submitit" / "%j", cluster=kind, **slurm)
    except RuntimeError as err:
        raise OSError(f"cannot use {kind}: {err}") from err
    settings = {**parameters, "slurm_array_parallelism": jobs} if kind == "slurm" else dict(parameters)
    made.update_parameters(name="sweep", **settings)
    return made


def submit_slurm(made: Any, work: Sequence[Chain]) -> list[str]:
    """Submit all chains as one array; the identifiers of the jobs."""
    with made.batch():
        submitted = [made.submit(chain) for chain in work]
    return [job.job_id for job in submitted]


def run_local(
    made: Any, work: Sequence[Chain], jobs: int, say: Callable[[str], None] = print, poll: float = 0.5
) -> Summary:
    """Do the chains as local jobs of submitit, `jobs` at a time, and wait for them; whatever ends this stops them."""
    waiting = list(work)
    active: list[tuple[Chain, Any]] = []
    done: list[str] = []
    errors: dict[str, str] = {}
    left: list[str] = []
    off: dict[str, None] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                chain = waiting.pop(0)
                active.append((chain, made.submit(chain)))
            for chain, job in [pair for pair in active if pair[1].done()]:
                active.remove((chain, job))
                err = job.exception()
                if err is None:
                    summary = job.result()
                    done += summary.done
                    errors.update(summary.errors)
                    left += summary.left
                    off |= dict.fromkeys(summary.off)
                else:
                    errors.update({run.key: f"job {job.job_id}: {_last(str(err))}" for run in chain.runs})
                say(f"job {job.job_id} has ended: {chain.runs[0].key}" + (", with errors" if err else ""))
            time.sleep(poll if active else 0.0)
    finally:
        for _, job in active:
            job.cancel()
    return Summary(tuple(done), errors, tuple(left), tuple(off))


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as err:
        raise ImportError("jobs of a cluster need the package submitit: pip install 'submitit>=1.5'") from err
    return submitit
