"""The command line of sweep.py: filters, dry run, status table, exit codes, Ctrl-C."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import train
from dassl.engine.status import resume_file, run_state
from experiments import expand, load_recipe
from experiments.sweeps import command as sweep

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "dassl" / "engine" / "tiny_method.py"


@pytest.fixture
def recipe(tmp_path):
    """recipe(**entries): path of a recipe of tiny runs."""

    def write(**entries):
        (tmp_path / "set.yaml").write_text("DATASET: {NAME: TinyImages}\n")
        (tmp_path / "tiny.yaml").write_text(
            "INPUT: {SIZE: [8, 8], TRANSFORMS: [normalize]}\nOPTIM: {NAME: sgd, LR: 0.05, MAX_EPOCH: 2}\n"
            "DATALOADER: {NUM_WORKERS: 0, TRAIN_X: {BATCH_SIZE: 6}, TEST: {BATCH_SIZE: 5}}\n"
        )
        content = {
            "task": "base2new",
            "imports": [str(TINY)],
            "config": str(tmp_path / "tiny.yaml"),
            "datasets": [str(tmp_path / "set.yaml")],
            "shots": 1,
            "seeds": [1, 2],
            "methods": ["Tiny", {"name": "Wide", "trainer": "Tiny", "variant": "wide", "options": {"OPTIM.LR": 0.1}}],
            **entries,
        }
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def places(tmp_path):
    return ["--root", str(tmp_path / "images"), "--output", str(tmp_path / "out")]


def runs_of(path, tmp_path):
    return expand(load_recipe(path), root=tmp_path / "images", output=tmp_path / "out")


def test_filters_keep_what_is_needed(recipe, tmp_path):
    runs = runs_of(recipe(), tmp_path)
    keys = [run.key for run in runs]
    assert sweep.choose(runs, []) == runs
    chosen = sweep.choose(runs, ["method=Wide,seed=2", "part=new"])
    assert [(run.method, run.seed, run.part) for run in chosen] == [("Wide", 2, "base"), ("Wide", 2, "new")]
    assert [run.key for run in sweep.choose(runs, ["method=T*,Wi?e"])] == keys
    assert {run.seed for run in sweep.choose(runs, ["seed=1,2"])} == {1, 2}
    assert sweep.choose(runs, ["seed=1"]) == [run for run in runs if run.seed == 1]
    for text, expected in (
        ("colour=red", "expected KEY=VALUE with one of task, method"),
        ("Wide", "expected KEY=VALUE"),
        ("method=Narrow", "no run has method 'Narrow', there is Tiny, Wide"),
    ):
        with pytest.raises(ValueError, match=expected):
            sweep.choose(runs, [text])


def test_shuffling_is_repeatable_and_keeps_needs_in_order(recipe, tmp_path):
    runs = runs_of(recipe(seeds=list(range(6))), tmp_path)
    mixed = sweep.shuffled(runs, 3)
    assert mixed == sweep.shuffled(runs, 3)
    assert mixed != runs
    assert mixed != sweep.shuffled(runs, 4)
    assert sorted(run.key for run in mixed) == sorted(run.key for run in runs)
    order = [run.key for run in mixed]
    assert all(order.index(key) < order.index(run.key) for run in mixed for key in run.needs)


def test_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 3)
    assert sweep.find_devices("auto") == ["0", "1", "2"]
    assert sweep.find_devices("2,0") == ["2", "0"]
    assert sweep.find_devices("none") == []
    with pytest.raises(ValueError, match="--gpus 3: there is 0, 1, 2"):
        sweep.find_devices("3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 2)
    assert sweep.find_devices("auto") == ["4", "GPU-abc"]
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 0)
    assert sweep.find_devices("auto") == []


def test_every_run_gets_a_gpu_of_its_own(recipe, places, monkeypatch, tmp_path):
    made = []

    class Kept(sweep.LocalSweep):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

        def run(self):
            return sweep.Summary((), {}, ())

    monkeypatch.setattr(sweep, "LocalSweep", Kept)
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    path = str(recipe())
    for flags in ([], ["--jobs", "3"], ["--gpus", "none", "--jobs", "2"], ["--gpus", "1"]):
        assert sweep.main([path, *places, *flags]) == 0
    limits = [[tuple(limit) for limit in kept.limits] for kept in made]
    assert limits == [
        [("0", None), ("1", None)],
        [("0", None), ("1", None), ("0", None)],
        [("", 4), ("", 4)],
        [("1", None)],
    ]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_dry_run_and_board_start_nothing(recipe, places, capsys, tmp_path):
    path = str(recipe())
    assert sweep.main([path, *places, "--dry-run", "--only", "method=Tiny,seed=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# new: base2new/train_base/set/shots_1/Tiny/tiny/seed1"
    assert lines[1].startswith(f"python {ROOT / 'train.py'} --root {tmp_path / 'images'} --seed 1 --trainer Tiny")
    assert lines[2].startswith("# new: base2new/test_new/")
    assert len(lines) == 4
    assert sweep.main(["status", path, *places]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["Tiny", "0", "0", "0", "0", "4"]
    assert shown.splitlines()[3].split() == ["all", "0", "0", "0", "0", "8"]
    assert "8 of 8 runs are left" in shown
    assert not (tmp_path / "out").exists()


def test_the_feature_cache_does_not_make_another_run(recipe, places, capsys, tmp_path):
    path, some = str(recipe(methods=["Tiny"])), ["--only", "seed=1", "--dry-run", "--feature-cache"]
    runs = runs_of(path, tmp_path)
    assert sweep.main([path, *places, *some]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(" TEST.FEATURE_CACHE True")
    train.run(list(runs[0].argv))  # without the cache
    capsys.readouterr()
    assert sweep.main([path, *places, *some]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"# done: {runs[0].key}"


def test_a_result_of_other_options_is_nowhere_done(recipe, places, capsys, tmp_path):
    """Neither for the status table, nor for a dry run, nor for jobs of a cluster, which nothing is left for."""
    pytest.importorskip("submitit")
    made = {"task": "few_shot", "seeds": 1, "methods": ["Tiny"]}
    (run,) = runs_of(recipe(**made), tmp_path)
    train.run(list(run.argv))
    path = str(recipe(**made))
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("0.05", "0.5"))
    os.utime(config, (time.time() + 5, time.time() + 5))
    capsys.readouterr()
    assert sweep.main(["status", path, *places]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["Tiny", "0", "0", "0", "1", "0"]
    assert "OPTIM.LR: 0.05 -> 0.5" in shown
    assert sweep.main([path, *places, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"# failed: {run.key}"
    assert sweep.main([path, *places, "--local-executor"]) == 1
    shown = capsys.readouterr().out
    assert "0 of 1 runs are done already; 0 jobs" in shown
    assert f'1 runs failed:\n  {run.key}: "{run.output_dir}" holds a run with another config' in shown


def test_two_recipes_share_what_is_the_same(recipe, places, tmp_path, capsys):
    path = recipe()
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text())
    args = sweep.parse([str(path), str(other), *places])
    assert len(sweep.gather(args)[0]) == 8
    other.write_text(path.read_text().replace("OPTIM.LR: 0.1", "OPTIM.LR: 0.2"))
    assert sweep.main([str(path), str(other), *places]) == 2
    assert "want different runs in the folder base2new/train_base/set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--jobs", "0"], "expected a number from 1"),
        (["--max-minutes", "-1"], "expected minutes above 0"),
        (["--slurm", "--local-executor"], "not allowed with"),
    ],
)
def test_bad_flags(flags, expected, recipe, places, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.main([str(recipe()), *places, *flags])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_bad_input_is_one_line(recipe, places, capsys, monkeypatch):
    assert sweep.main(["no_such", *places]) == 2
    assert capsys.readouterr().err.startswith('error: there is no recipe "no_such"; recipes has: ')
    assert sweep.main([str(recipe()), *places, "--only", "seed=9"]) == 2
    assert capsys.readouterr().err == "error: --only: no run has seed '9', there is 1, 2\n"
    assert sweep.main([str(recipe()), *places, "--local-executor", "--max-minutes", "1"]) == 2
    assert "which have --time" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep.main([str(recipe()), *places, "--slurm"]) == 2
    assert "pip install 'submitit>=1.5'" in capsys.readouterr().err


def test_slurm_gets_chains_and_options(recipe, places, capsys, monkeypatch):
    submitted = []

    class Job:
        job_id = "7_0"

    class Executor:
        def __init__(self, folder, cluster, **options):
            self.options = {"folder": folder, "cluster": cluster, **options}
            submitted.append(self)
            self.chains = []

        def update_parameters(self, **options):
            self.options |= options

        def batch(self):
            import contextlib

            return contextlib.nullcontext()

        def submit(self, chain):
            self.chains.append(chain)
            return Job()

    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    flags = ["--slurm", "--partition", "gpu", "--time", "90", "--gpus-per-job", "2", "--slurm-option", "account=me"]
    assert sweep.main([str(recipe()), *places, *flags, "--jobs", "5", "--retries", "3"]) == 0
    (executor,) = submitted
    assert [[run.part for run in chain.runs] for chain in executor.chains] == [["base", "new"]] * 4
    assert {chain.retries for chain in executor.chains} == {3}
    expected = {"cluster": "slurm", "timeout_min": 90, "gpus_per_node": 2, "slurm_partition": "gpu"}
    expected |= {"slurm_array_parallelism": 5, "slurm_additional_parameters": {"account": "me"}, "cpus_per_task": 8}
    assert {key: executor.options[key] for key in expected} == expected
    assert "4 jobs" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_stops_everything_and_the_same_command_continues(recipe, places, tmp_path, capsys):
    options = {"TRAINER.TINY.SLEEP": 0.15, "OPTIM.MAX_EPOCH": 4}
    slow = {"name": "Slow", "trainer": "Tiny", "variant": "slow", "options": options}
    broken = {"name": "Broken", "trainer": "Tiny", "variant": "bad", "options": {"TRAINER.TINY.BREAK_AT": 1}}
    path = recipe(methods=[slow, broken], seeds=1)
    runs = runs_of(path, tmp_path)
    command = [sys.executable, str(ROOT / "sweep.py"), str(path), *places, "--only", "method=Slow"]
    # What a shell starts in the background ignores SIGINT, and passes that on.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(command, **pipes, text=True, cwd=tmp_path, preexec_fn=heeds)
    end = time.monotonic() + 240
    while not resume_file(runs[0].output_dir).exists():
        assert time.monotonic() < end
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    pid = json.loads((runs[0].output_dir / "env.json").read_text())["pid"]
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert err == "interrupted; the same command continues\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert run_state(runs[0].output_dir) == "incomplete"
    assert sweep.main([*command[2:-2], "--retries", "0"]) == 1
    shown = capsys.readouterr().out
    assert "2 runs failed:" in shown
    assert "Loss is infinite or NaN" in shown
    assert [run_state(run.output_dir) for run in runs] == ["done", "done", "failed", "new"]
    assert "Resume" in (runs[0].output_dir / "log.txt").read_text()
