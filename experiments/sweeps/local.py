"""The scheduler: many runs on this machine, several at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from dassl.engine.status import run_state
from experiments import Run
from experiments.recipe import SEARCH
from experiments.status import finished_result, in_use, main_figure, run_status
from experiments.sweeps import worker
from experiments.sweeps.event_log import EventLog
from experiments.sweeps.progress import Durations, time_text
from experiments.sweeps.sanity_check import SanityCheck
from experiments.sweeps.worker import STDERR, Limits, Outcome, last_line, work

GRACE_SECONDS = 20.0  # between the request to stop and the end by force
STOPS = 3  # by a signal from outside, as of a cluster before it preempts a job, that do not count as a failure of a run
LONGEST_PAUSE = 3600.0  # seconds; a deadline may be further away than a system call can wait


class Active(NamedTuple):
    """A run at work."""

    run: Run
    slot: int
    process: Any
    answer: Connection
    started: float


class Summary(NamedTuple):
    """Outcome of the runs, by key; `errors` holds failed and blocked ones."""

    done: tuple[str, ...]
    errors: dict[str, str]
    left: tuple[str, ...]  # neither, because the sweep was stopped
    off: tuple[str, ...] = ()  # zero-shot figures that are not the known ones, see experiments/sweeps/sanity_check.py


class LocalSweep:
    """Does runs in separate processes, each after the runs it needs.

    A run that fails, or whose process dies, is tried again later, `retries` times; one that was asked to stop, by other
    than this sweep, goes on and has not failed, the first `STOPS` times. A run that another sweep is at is left to it,
    and looked at again after `patience` seconds.

    Args:
        runs: with everything they need, see `tasks.with_needs`.
        jobs: how many at a time.
        devices: CUDA_VISIBLE_DEVICES of the 1st, 2nd, ... of them, over again if there are more; empty: unchanged.
        threads: CPU threads of each; None: unchanged.
        retries: further attempts of a run that fails.
        deadline: of time.monotonic(), after which everything is stopped; None: no limit.
        forks: start runs as forks of this very process, which saves the imports of another; only for a process that
            has no threads and has not touched CUDA.
        sanity_check: compares zero-shot runs with known figures before other runs of their data set start.
        say: takes the lines about the progress.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        output: Path,
        *,
        jobs: int = 1,
        devices: Sequence[str] = (),
        threads: int | None = None,
        retries: int = 1,
        deadline: float | None = None,
        patience: float = 5.0,
        forks: bool = False,
        sanity_check: SanityCheck | None = None,
        say: Callable[[str], None] = print,
    ):
        self.runs = {run.key: run for run in runs}
        missing = sorted({key for run in runs for key in run.needs} - set(self.runs))
        if missing:
            raise ValueError(f"runs are needed that are not among those to do: {', '.join(missing)}")
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}, expected 1 or more")
        self.event_log = EventLog(output)
        self.limits = [Limits(devices[slot % len(devices)] if devices else None, threads) for slot in range(jobs)]
        self.retries, self.deadline, self.patience, self.say = retries, deadline, patience, say
        self.waiting: deque[Run] = deque(runs)
        self.active: list[Active] = []
        self.done: set[str] = set()
        self.errors: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.stops: dict[str, int] = {}
        self.not_before: dict[str, float] = {}
        self.durations = Durations()
        self.context = _context(forks)
        self.sanity_check = sanity_check
        self.off: dict[str, str] = {}

    def run(self) -> Summary:
        """Do everything. Whatever ends this early, Ctrl-C too, first stops the processes of the runs."""
        self._skip_done()
        try:
            while self.waiting or self.active:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    self.say(f"time is over, {len(self.active)} runs are stopped; the same command continues")
                    break
                self._start_ready()
                self._collect(self._pause())
        finally:
            self._stop()
        left = tuple(run.key for run in self.waiting)
        return Summary(tuple(self.done), dict(self.errors), left, tuple(self.off.values()))

    def _skip_done(self) -> None:
        finished = [run for run in self.waiting if run_state(run.output_dir) == "done"]
        keys = {run.key for run in finished}
        self.waiting = deque(run for run in self.waiting if run.key not in keys)
        for run in finished:
            err = run_status(run).error
            if err:
                self._give_up(run, err)
            else:
                self.done.add(run.key)
        self.durations.add_finished([run for run in finished if run.key in self.done], self.event_log.read())
        if self.done:
            self.say(f"{len(self.done)} of {len(self.runs)} runs are done already")
        for check in () if self.sanity_check is None else self.sanity_check.checks():
            self._compare(check.run)

    # starting

    def _start_ready(self) -> None:
        free = sorted(set(range(len(self.limits))) - {active.slot for active in self.active})
        for run in list(self.waiting):
            lost = next((key for key in run.needs if key in self.errors), None)
            if lost is not None:
                self.waiting.remove(run)
                self._give_up(run, f"needs {lost}, which failed", "blocked")
            elif self._held_back(run):
                self.waiting.remove(run)
                self._give_up(run, f"zero-shot CLIP is off on {run.dataset}", "blocked")
            elif free and self._ready(run):
                self.waiting.remove(run)
                if run_state(run.output_dir) == "done":
                    self._finish(run, "by another sweep")
                else:
                    self._start(run, free.pop(0))

    def _held_back(self, run: Run) -> bool:
        """True if the zero-shot figure for the data set and backbone of a run differs from the known one."""
        if self.sanity_check is None or run.key in self.sanity_check.keys:
            return False
        check = self.sanity_check.check(run)
        return check is not None and bool(check.err)

    def _waits(self, run: Run) -> bool:
        """True if the zero-shot run that must come before a run is still to be done here."""
        first = None if self.sanity_check is None else self.sanity_check.first(run)
        if first is None or first.key not in self.runs:
            return False
        return first.key not in self.done and first.key not in self.errors

    def _ready(self, run: Run) -> bool:
        if self._waits(run):
            return False
        if not self.done.issuperset(run.needs) or self.not_before.get(run.key, 0.0) > time.monotonic():
            return False
        if in_use(run.output_dir):
            self._put_off(run)
            return False
        return True

    def _put_off(self, run: Run) -> None:
        if run.key not in self.not_before:
            self.say(f"{run.key} is run by another process; it is left to that one")
        self.not_before[run.key] = time.monotonic() + self.patience

    def _start(self, run: Run, slot: int) -> None:
        answer, other = self.context.Pipe(duplex=False)
        begin = partial(self.event_log.write, "start", run.key, self.attempts.get(run.key, 0) + 1)
        arguments = (run.argv, str(run.output_dir), self.limits[slot], other, begin)
        process = self.context.Process(target=work, args=arguments, name=run.key)
        self.active.append(Active(run, slot, process, answer, time.monotonic()))  # first, so that it is stopped
        try:
            process.start()
        except (EOFError, ConnectionError) as err:
            raise OSError(
                "the process from which runs are forked has ended, perhaps for lack of memory; the same command goes on"
            ) from err
        other.close()

    # ending

    def _pause(self) -> float | None:
        """Seconds until something other than the end of a process must be looked at, None if there is nothing."""
        now = time.monotonic()
        moments = [moment for run in self.waiting if (moment := self.not_before.get(run.key, 0.0)) > now]
        if self.deadline is not None:
            moments.append(self.deadline)
        if not self.active and self.waiting and not moments:
            return 0.0  # a failure has just blocked others
        return min(max(min(moments) - now, 0.0), LONGEST_PAUSE) if moments else None

    def _collect(self, pause: float | None) -> None:
        if not self.active:
            time.sleep(pause or 0.0)
            return
        ended = wait([active.process.sentinel for active in self.active], pause)
        for active in [active for active in self.active if active.process.sentinel in ended]:
            self.active.remove(active)
            self._settle(active, _outcome(active))

    def _settle(self, active: Active, outcome: Outcome) -> None:
        run, seconds = active.run, _seconds(active, outcome)
        if outcome.kind == "busy":
            self._put_off(run)
            self.waiting.append(run)
            return
        if outcome.kind == "elsewhere":
            self._finish(run, "by another sweep")
            return
        attempt = self.attempts.get(run.key, 0) + 1
        self.event_log.write(outcome.kind, run.key, attempt, seconds, outcome.error)
        if outcome.kind == "stopped" and self.stops.get(run.key, 0) < STOPS:
            self.stops[run.key] = self.stops.get(run.key, 0) + 1
            self.say(f"{outcome.error}: {run.key}; it goes on")
            self.waiting.append(run)
            return
        self.attempts[run.key] = attempt
        if outcome.kind == "done":
            self.durations.add(run, seconds)
            self._finish(run, time_text(seconds))
        elif attempt <= self.retries:
            self.say(f"failed: {run.key}: {outcome.error or outcome.kind}; tried again later")
            self.waiting.append(run)
        else:
            self._give_up(run, outcome.error or outcome.kind)

    def _finish(self, run: Run, remark: str) -> None:
        self.done.add(run.key)
        shown = ""
        with contextlib.suppress(OSError, ValueError):
            result = finished_result(run)
            shown = f" {result[main_figure(result)]:.1f} %"
        left = [*self.waiting, *(active.run for active in self.active)]
        seconds = self.durations.left(left, len(self.limits))
        rest = f"; left: {len(left)}" if left else ""
        rest += f", about {time_text(seconds)}" if left and seconds is not None else ""
        self.say(f"[{len(self.done)}/{len(self.runs)}] {run.key}{shown} ({remark}{rest})")

        self._compare(run)

    def _compare(self, run: Run) -> None:
        """Say and note the finding of the sanity check on a zero-shot run that is done."""
        if self.sanity_check is None or run.key not in self.sanity_check.keys:
            return
        check = self.sanity_check.check(run)
        if check is not None:
            self.say(check.line())
            if check.err:
                self.off[run.key] = check.err
                self.say(check.err)
            self.event_log.write("sanity-check", run.key, error=check.err or check.remark)

    def _give_up(self, run: Run, error: str, kind: str = "failed") -> None:
        self.errors[run.key] = error
        if kind == "blocked":
            self.event_log.write(kind, run.key, error=error)
        self.say(f"{kind}: {run.key}: {error}")

    def _stop(self) -> None:
        """End all processes: by request, so that they close their files, then by force."""
        started = [active for active in self.active if active.process.pid is not None]
        for active in started:
            _signal(active.process.pid, "SIGINT")
        until = time.monotonic() + GRACE_SECONDS
        try:
            for active in started:
                active.process.join(max(until - time.monotonic(), 0.0))
        except KeyboardInterrupt:
            self.say("interrupted again: the runs are ended by force")
        for active in started:
            if active.process.is_alive():
                _signal(active.process.pid, "SIGKILL", group=True)
            self._settle_stopped(active, _outcome(active))
        self.active = []

    def _settle_stopped(self, active: Active, outcome: Outcome) -> None:
        run = active.run
        if outcome.kind == "elsewhere":
            self.done.add(run.key)
            return
        if outcome.kind == "done":
            self.done.add(run.key)
        else:
            self.waiting.append(run)
        kind = "done" if outcome.kind == "done" else "stopped"
        self.event_log.write(kind, run.key, self.attempts.get(run.key, 0) + 1, _seconds(active, outcome))


def _context(forks: bool) -> Any:
    """Processes that are forks of one that has imported everything; where that does not exist, new interpreters."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    if forks:
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(SEARCH) not in paths:  # the process that is forked does not know sys.path
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SEARCH), *filter(None, paths)])
    return context


def _outcome(active: Active) -> Outcome:
    """Last message of a process that has ended, or its signal."""
    process, folder = active.process, active.run.output_dir
    process.join()
    with contextlib.suppress(EOFError, OSError):
        if active.answer.poll():
            return active.answer.recv()
    if process.exitcode is not None and process.exitcode < 0:
        _signal(process.pid, "SIGKILL", group=True)  # what it has started lives on and keeps its locks
        number = -process.exitcode
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return Outcome("failed", f"the process was ended by signal {number} ({name})")
    said = last_line(folder / STDERR)
    return Outcome("failed", f"the process ended with code {process.exitcode}" + (f": {said}" if said else ""))


def _seconds(active: Active, outcome: Outcome) -> float:
    """Duration of an attempt as it said itself, else since its start, which the first start makes longer."""
    return round(time.monotonic() - active.started, 3) if outcome.seconds is None else outcome.seconds


def _signal(pid: int, name: str, group: bool = False) -> None:
    """Signal a process that may have ended, with `group` all processes it heads as well."""
    number = getattr(signal, name, signal.SIGTERM)
    if group and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
