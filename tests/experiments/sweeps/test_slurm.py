"""A sweep as jobs of a real Slurm; skipped where there is none (one on a single machine: docs/sweeps.md)."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from tiny_recipe import slow, tiny_runs

from dassl.engine.status import resume_file, run_state
from experiments.sweeps import command as sweep


def slurm_answers():
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    try:
        shown = subprocess.run(["sinfo", "-h", "-o", "%a %T"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return any(line.split()[0] == "up" and line.split()[1] in ("idle", "mixed") for line in shown.stdout.splitlines())


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not slurm_answers(), reason="needs a Slurm with a free node")]
pytest.importorskip("submitit")
PATIENCE = 250


def wait_for(what, reached):
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.3)


def test_a_killed_worker_goes_on_in_the_same_job(tmp_path, capsys):
    """The run is tried again after its last whole epoch, and has every epoch once at the end."""
    (run,) = tiny_runs(tmp_path, methods=[slow(0.3, epochs=8)], seeds=1)
    places = ["--root", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    flags = ["--slurm", "--time", "10", "--gpus-per-job", "0", "--cpus-per-job", "1"]
    assert sweep.main([str(tmp_path / "table.yaml"), *places, *flags]) == 0
    job = capsys.readouterr().out.split("submitted ")[1].split()[0]
    try:
        wait_for("first epoch", resume_file(run.output_dir).exists)
        os.kill(json.loads((run.output_dir / "env.json").read_text())["pid"], signal.SIGKILL)
        events = tmp_path / "out" / "sweep.jsonl"
        wait_for("second attempt", lambda: '"attempt": 2' in events.read_text())
        resumed = lambda: (run.output_dir / "log.txt").read_text().count("Resume ")  # noqa: E731
        wait_for("resuming", lambda: resumed() == 1)
        wait_for("end", lambda: run_state(run.output_dir) == "done")
        assert resumed() == 1
        metrics = [json.loads(line) for line in (run.output_dir / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in metrics if line["kind"] == "epoch"] == list(range(1, 9))
    finally:
        subprocess.run(["scancel", job], check=False)
    assert sweep.main([str(tmp_path / "table.yaml"), *places, *flags]) == 0
    assert "1 of 1 runs are done already; 0 jobs" in capsys.readouterr().out
