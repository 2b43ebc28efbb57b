"""The scheduler on tiny runs: what is done once, what is tried again, and what is left when it is stopped."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time

import filelock
import pytest
import torch
from tiny_recipe import BROKEN, slow, tiny_runs

import train
from dassl.engine.run import RunFolder
from dassl.engine.status import read_result, resume_file, run_state
from experiments import expand, load_recipe
from experiments.status import CLAIM, in_use, other_config, run_status
from experiments.sweeps.cluster import Chain, chains, executor, run_local
from experiments.sweeps.event_log import EventLog
from experiments.sweeps.local import LONGEST_PAUSE, LocalSweep
from experiments.sweeps.progress import Durations, status_table, time_text
from experiments.sweeps.worker import attempt

pytestmark = pytest.mark.slow


def sweep(runs, folder, said=None, **options):
    made = LocalSweep(
        runs, folder / "out", threads=1, patience=0.2, say=(said if said is not None else []).append, **options
    )
    return made.run()


def events(folder, kind):
    return [event for event in EventLog(folder / "out").read() if event.kind == kind]


def starts(run):
    """Number of times a run was really started, from its folder."""
    return 1 + len(json.loads((run.output_dir / "env.json").read_text())["earlier_starts"])


def until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def test_does_everything_in_order_and_nothing_twice(tmp_path):
    runs = tiny_runs(tmp_path, task="base2new")
    said = []
    summary = sweep(runs, tmp_path, said, jobs=2)
    assert set(summary.done) == {run.key for run in runs}
    assert not summary.errors
    finished = [event.key for event in events(tmp_path, "done")]
    assert sorted(finished) == sorted(run.key for run in runs)
    for run in runs:
        assert finished.index(run.key) > max([finished.index(key) for key in run.needs], default=-1)
        assert read_result(run.output_dir)["mode"] == ("eval" if run.needs else "train")
        assert read_result(run.output_dir)["seed"] == run.seed
    assert said[-1].startswith("[4/4] base2new/test_new/")
    # again: nothing runs, and a folder alone is not a result
    (runs[3].output_dir / "DONE").unlink()
    before = {run.key: (run.output_dir / "env.json").stat().st_mtime_ns for run in runs}
    assert set(sweep(runs, tmp_path).done) == {run.key for run in runs}
    again = {run.key for run in runs if (run.output_dir / "env.json").stat().st_mtime_ns != before[run.key]}
    assert again == {runs[3].key}


def test_runs_do_not_share_memory_figures_or_output(tmp_path, capfd):
    runs = tiny_runs(tmp_path, seeds=[1, 2, 3])
    sweep(runs, tmp_path)
    peaks = [read_result(run.output_dir)["peak_memory_mib"]["rss"] for run in runs]
    assert max(peaks) < min(peaks) + 20
    out = capfd.readouterr()
    assert "accuracy" not in out.out + out.err
    assert "accuracy" in (runs[0].output_dir / "log.txt").read_text()


def test_a_killed_run_is_tried_again_and_continues(tmp_path):
    (run,) = tiny_runs(tmp_path, seeds=1, methods=[slow(0.15, 4)])
    killed = []

    def kill():
        until(resume_file(run.output_dir).exists)
        pid = json.loads((run.output_dir / "env.json").read_text())["pid"]
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    said = []
    summary = sweep([run], tmp_path, said, retries=1)
    thread.join()
    assert killed
    assert killed != [os.getpid()]
    assert summary.done == (run.key,)
    assert "signal 9 (SIGKILL); tried again" in said[0]
    assert starts(run) == 2
    assert "Resume" in (run.output_dir / "log.txt").read_text()
    assert [event.error for event in events(tmp_path, "failed")] == ["the process was ended by signal 9 (SIGKILL)"]


def test_a_run_that_is_asked_to_stop_goes_on_and_has_not_failed(tmp_path):
    """As by a cluster that preempts a job: it may end well in the time that is left, whatever `retries` is."""
    (run,) = tiny_runs(tmp_path, seeds=1, methods=[slow(0.15, 4)])

    def stop():
        until(resume_file(run.output_dir).exists)
        os.kill(json.loads((run.output_dir / "env.json").read_text())["pid"], signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    said = []
    summary = sweep([run], tmp_path, said, retries=0)
    thread.join()
    assert (summary.done, summary.errors) == ((run.key,), {})
    assert said[0] == f"stopped by a signal: {run.key}; it goes on"
    assert starts(run) == 2
    assert [event.attempt for event in EventLog(tmp_path / "out").read()] == [1, 1, 1, 1]


def test_a_run_that_is_asked_to_stop_too_often_has_failed(tmp_path, monkeypatch):
    (run,) = tiny_runs(tmp_path, seeds=1, methods=[slow(5)])
    monkeypatch.setattr("experiments.sweeps.local.STOPS", 0)

    def stop():
        until((run.output_dir / "env.json").exists)
        os.kill(json.loads((run.output_dir / "env.json").read_text())["pid"], signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert sweep([run], tmp_path, retries=0).errors == {run.key: "stopped by a signal"}
    thread.join()


def test_a_run_that_is_killed_every_time_is_shown_as_failed(tmp_path):
    (run,) = tiny_runs(tmp_path, seeds=1, methods=[slow(5)])

    def kill():
        until((run.output_dir / "env.json").exists)
        os.kill(json.loads((run.output_dir / "env.json").read_text())["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = sweep([run], tmp_path, retries=0)
    thread.join()
    assert list(summary.errors) == [run.key]
    assert run_state(run.output_dir) == "incomplete"
    assert run_status(run, EventLog(tmp_path / "out").last()) == (
        "failed",
        "the process was ended by signal 9 (SIGKILL)",
    )


def test_failures_are_tried_again_and_block_what_needs_them(tmp_path):
    runs = tiny_runs(tmp_path, task="base2new", seeds=1, methods=[BROKEN, "Tiny"])
    broken, blocked, *good = runs
    said = []
    summary = sweep(runs, tmp_path, said, retries=2)
    assert set(summary.done) == {run.key for run in good}
    assert set(summary.errors) == {broken.key, blocked.key}
    assert "Loss is infinite or NaN" in summary.errors[broken.key]
    assert summary.errors[blocked.key] == f"needs {broken.key}, which failed"
    assert starts(broken) == 3
    assert not blocked.output_dir.exists()
    assert sum("tried again later" in line for line in said) == 2
    assert f"blocked: {blocked.key}: needs {broken.key}, which failed" in said
    last = EventLog(tmp_path / "out").last()
    statuses = {run.key: run_status(run, last) for run in runs}
    shown = status_table(runs, statuses, Durations())
    assert f"  {broken.key}\n    {summary.errors[broken.key]}" in shown
    assert f"waiting for a failed run:\n  {blocked.key}" in shown


def test_bad_arguments_are_a_failure_with_their_reason(tmp_path):
    method = {"name": "Tiny", "variant": "odd", "options": {"OPTIM.LR_SCHEDULER": "no_such"}}
    (run,) = tiny_runs(tmp_path, seeds=1, methods=[method])
    summary = sweep([run], tmp_path, retries=0)
    assert "no_such" in summary.errors[run.key]
    assert run_status(run, EventLog(tmp_path / "out").last()).state == "failed"


def test_a_result_of_another_config_is_not_taken(tmp_path):
    (run,) = tiny_runs(tmp_path, seeds=1)
    sweep([run], tmp_path)
    assert other_config(run) == ""
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("0.05", "0.5"))
    os.utime(config, (time.time() + 5, time.time() + 5))
    assert "OPTIM.LR: 0.05 -> 0.5" in other_config(run)
    summary = sweep([run], tmp_path)
    assert "OPTIM.LR: 0.05 -> 0.5" in summary.errors[run.key]
    assert run_status(run) == ("failed", summary.errors[run.key])  # the status table and the sweep agree


def test_an_evaluation_of_an_earlier_training_is_not_taken(tmp_path):
    """The training was done again: what it had then been evaluated to would stand beside it in one table."""
    base, new = tiny_runs(tmp_path, task="base2new", seeds=1)
    sweep([base, new], tmp_path)
    assert run_status(new).state == "done"
    shutil.rmtree(base.output_dir)
    text = f'the result is of an earlier run of {base.key}; delete the folder "{new.output_dir}" to do the run again'
    assert run_status(new) == ("failed", text)
    time.sleep(1.1)  # starts are noted to the second
    summary = sweep([base, new], tmp_path)
    assert (summary.done, summary.errors) == ((base.key,), {new.key: text})
    assert run_status(new) == ("failed", text)
    shutil.rmtree(new.output_dir)
    assert sweep([base, new], tmp_path).errors == {}
    train.run(["--eval-only", "--model-dir", str(base.output_dir), *base.argv])
    assert run_status(new).state == "done"  # evaluated again is not trained again


def test_a_folder_of_all_runs_may_be_moved(tmp_path):
    """Also with runs whose config names the folder of another one."""
    entries = {"task": "incremental", "sets": 2, "seeds": 1}
    sweep(tiny_runs(tmp_path, **entries), tmp_path)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    recipe = load_recipe(tmp_path / "table.yaml")
    runs = expand(recipe, root=tmp_path / "images", output=tmp_path / "elsewhere")
    assert {run_status(run) for run in runs} == {("done", "")}


@pytest.mark.parametrize("text", ["{", "[]", '{"accuracy": "high"}', '{"accuracy": 50, "fingerprint": {}}'])
def test_a_damaged_result_is_a_failure_and_stays(tmp_path, text):
    (run,) = tiny_runs(tmp_path, seeds=1)
    run.output_dir.mkdir(parents=True)
    result = run.output_dir / "result.json"
    result.write_text(text)
    (run.output_dir / "DONE").touch()
    assert run_status(run).state == "failed"
    error = sweep([run], tmp_path).errors[run.key]
    assert error == run_status(run).error
    assert re.search(r'result\.json.*; delete the folder ".*" to do the run again', error)
    assert result.read_text() == text


def test_a_line_that_is_no_event_is_left_out(tmp_path):
    event_log = EventLog(tmp_path)
    event_log.write("done", "a", seconds=1.0)
    with open(event_log.path, "a") as file:
        file.write('[1]\n{"kind": "done", "key": [1]}\n{"kind": "done", "key": "b", "seconds": "x"}\n{"kind": "fai')
    assert list(event_log.last()) == ["a"]


def test_a_deadline_far_away_is_no_limit(tmp_path):
    made = LocalSweep(tiny_runs(tmp_path, seeds=1), tmp_path / "out", deadline=float("inf"))
    assert made._pause() == LONGEST_PAUSE  # no system call waits forever


def _sweep_in_process(runs, folder):
    torch.set_num_threads(1)
    LocalSweep(runs, folder / "out", jobs=2, threads=1, patience=0.2, say=lambda line: None).run()


def test_two_sweeps_in_one_folder_do_every_run_once(tmp_path):
    runs = tiny_runs(tmp_path, task="base2new", seeds=[1, 2, 3])
    context = multiprocessing.get_context("forkserver")
    other = context.Process(target=_sweep_in_process, args=(runs, tmp_path))
    other.start()
    summary = sweep(list(reversed(runs)), tmp_path, jobs=2)
    other.join(60)
    assert other.exitcode == 0
    assert set(summary.done) == {run.key for run in runs}
    assert [starts(run) for run in runs] == [1] * len(runs)
    for kind in ("start", "done"):
        assert sorted(event.key for event in events(tmp_path, kind)) == sorted(run.key for run in runs)


def test_only_the_sweep_that_does_a_run_notes_its_start(tmp_path):
    (run,) = tiny_runs(tmp_path, seeds=1)
    begun = []
    run.output_dir.mkdir(parents=True)
    with filelock.FileLock(run.output_dir / CLAIM):
        assert attempt(run.argv, run.output_dir, lambda: begun.append(run)).kind == "busy"
    for name in ("DONE", "result.json"):
        (run.output_dir / name).touch()
    assert attempt(run.argv, run.output_dir, lambda: begun.append(run)).kind == "elsewhere"
    assert not begun


def test_a_run_of_another_program_is_left_to_it(tmp_path):
    (run,) = tiny_runs(tmp_path, seeds=1)
    said = []
    with RunFolder(run.output_dir):
        assert in_use(run.output_dir)
        assert run_status(run).state == "running"
        summary = sweep([run], tmp_path, said, deadline=time.monotonic() + 1)
        assert summary.left == (run.key,)
    assert said[0] == f"{run.key} is run by another process; it is left to that one"
    assert not in_use(run.output_dir)
    assert sweep([run], tmp_path).done == (run.key,)


def test_time_over_stops_and_the_next_sweep_continues(tmp_path):
    runs = tiny_runs(tmp_path, methods=[slow(0.15, 4)])
    said = []
    made = LocalSweep(runs, tmp_path / "out", threads=1, say=said.append)

    def set_deadline():
        until(resume_file(runs[0].output_dir).exists)
        made.deadline = time.monotonic()

    timer = threading.Thread(target=set_deadline)
    made.deadline = time.monotonic() + 3600
    original = made._pause
    made._pause = lambda: min(original() or 0.05, 0.05)
    timer.start()
    summary = made.run()
    timer.join()
    assert set(summary.left) == {run.key for run in runs}
    assert run_state(runs[0].output_dir) == "incomplete"
    assert run_status(runs[0]).state == "incomplete"
    assert said == ["time is over, 1 runs are stopped; the same command continues"]
    assert set(sweep(runs, tmp_path).done) == {run.key for run in runs}
    assert "Resume" in (runs[0].output_dir / "log.txt").read_text()
    assert not events(tmp_path, "failed")


def test_needs_must_be_there(tmp_path):
    runs = tiny_runs(tmp_path, task="base2new", seeds=1)
    with pytest.raises(ValueError, match="train_base"):
        LocalSweep(runs[1:], tmp_path / "out")
    with pytest.raises(ValueError, match="jobs is 0"):
        LocalSweep(runs, tmp_path / "out", jobs=0)


def test_a_job_of_submitit_does_a_chain_and_survives_preemption(tmp_path):
    pytest.importorskip("submitit")
    runs = tiny_runs(tmp_path, task="base2new", seeds=1, methods=[slow(0.15, 4)])
    made = executor("local", tmp_path / "out", 1, {"timeout_min": 10})

    def preempt():
        until(resume_file(runs[0].output_dir).exists)
        job = events(tmp_path, "start")[0].pid
        assert job != os.getpid()
        os.kill(job, signal.SIGUSR2)  # what Slurm sends before it takes a node away

    thread = threading.Thread(target=preempt)
    thread.start()
    said = []
    summary = run_local(made, [Chain(runs, tmp_path / "out", threads=1)], 1, said.append, poll=0.05)
    thread.join()
    assert set(summary.done) == {run.key for run in runs}
    assert starts(runs[0]) == 2
    assert "Resume" in (runs[0].output_dir / "log.txt").read_text()
    assert len(said) == 1


def test_chains_hold_together_what_needs_each_other(tmp_path):
    groups = chains(tiny_runs(tmp_path, task="base2new", methods=["Tiny", BROKEN]))
    assert [[run.part for run in group] for group in groups] == [["base", "new"]] * 4
    assert all(group[1].needs == (group[0].key,) for group in groups)


def test_durations_come_from_the_most_similar_runs(tmp_path):
    trained, tested = tiny_runs(tmp_path, task="base2new", seeds=1)
    durations = Durations()
    assert durations.left([trained], 1) is None
    durations.add(trained, 100.0)
    assert durations.left([tested], 1) is None
    durations.add(tested, 10.0)
    assert durations.left([trained, tested, tested], 1) == 120
    assert durations.left([trained, tested, tested], 2) == 100
    assert [time_text(value) for value in (None, 59.4, 61, 5999, 6001)] == [
        "unknown",
        "59 s",
        "1 min",
        "1 h 40 min",
        "1 h 40 min",
    ]


def test_a_fork_server_that_is_gone_is_said(tmp_path, monkeypatch):
    def gone(process):
        raise EOFError("unexpected EOF")

    monkeypatch.setattr("multiprocessing.context.ForkServerProcess.start", gone)
    with pytest.raises(OSError, match="from which runs are forked has ended"):
        sweep(tiny_runs(tmp_path), tmp_path)
