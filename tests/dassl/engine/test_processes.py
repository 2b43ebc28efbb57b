"""Two processes over gloo: once by torchrun as a program, then without starting Python anew, which is faster."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import EPOCHS, tiny_arguments
from torch import nn
from two_processes import launcher, start

import train
from dassl.engine import command as command_module
from dassl.engine.records import read_metrics
from dassl.engine.status import run_state
from dassl.utils import distributed

SCRIPT = Path(__file__).with_name("two_processes.py")
OPTIONS = ("DATALOADER.TRAIN_X.BATCH_SIZE", 3)  # per process: 18 images are 3 steps of 2 x 3
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["two_processes", "torch.utils.tensorboard"])


def reports_in(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def start_both(folder, arguments, **options):
    """Both processes; returns their exit codes and reports."""
    reports = folder / "reports"
    reports.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        context.Process(target=start, args=(rank, port, reports, arguments, str(folder / "out.txt")), kwargs=options)
        for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    return [process.exitcode for process in both], reports_in(reports)


ONE_MACHINE = ("--standalone", "--nproc_per_node=2")


def script(folder):
    """The script and its arguments, for torchrun."""
    (folder / "reports").mkdir(exist_ok=True)
    return [str(SCRIPT), str(folder / "reports"), *tiny_arguments(folder / "images", folder / "run", *OPTIONS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes by torchrun: its folder, what the launcher printed, the reports."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "torch.distributed.run", *ONE_MACHINE, *script(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(train.__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done, reports_in(folder / "reports")


def launch(folder, count, *flags, **variables):
    """So many launchers at a time: their exit codes, seconds from the kill to the end."""
    arguments, log = [*flags, *script(folder)], str(folder / "out.txt")
    nodes = [context.Process(target=launcher, args=(arguments, log, variables)) for _ in range(count)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(400)
        node.kill()
        node.join()
    killed = folder / "reports" / "killed"
    return [node.exitcode for node in nodes], time.time() - killed.stat().st_mtime if killed.exists() else None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_one_model(whole):
    tmp_path, done, reports = whole
    assert [report["rank"] for report in reports] == [0, 1]
    first, second = reports
    assert first["weights"] == second["weights"]
    assert first["wrapped"] == "DistributedDataParallel"
    # each epoch every image is seen once, by one of the two
    for epoch in range(EPOCHS):
        seen = [report["seen"][9 * epoch : 9 * epoch + 9] for report in reports]
        assert sorted(seen[0] + seen[1]) == list(range(18))
    assert first["draw"] != second["draw"]
    # every test image is evaluated once, and both know the result of all
    assert first["evaluated"] + second["evaluated"] == 12
    assert abs(first["evaluated"] - second["evaluated"]) <= 1
    for report in reports:
        assert report["result"]["counts"]["evaluated"] == 12
        assert report["result"]["accuracy"] == first["result"]["accuracy"]
        assert report["result"]["processes"] == 2
    # one writer
    assert (tmp_path / "run" / "log.txt").read_text().count("Finish training") == 1
    assert done.stdout.count("Finish training") == 1
    records = read_metrics(tmp_path / "run")
    assert [r["images"] for r in records if r["kind"] == "epoch"] == [18] * EPOCHS
    assert len([r for r in records if r["kind"] == "train"]) == 3 * EPOCHS
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert run_state(tmp_path / "run") == "done"
    # the checkpoint is that of the model, without a wrapper, and loads in one process
    checkpoint = torch.load(tmp_path / "run" / "tiny" / f"model.pth.tar-{EPOCHS}", weights_only=True)
    assert not any(name.startswith("module.") for name in checkpoint["state_dict"])
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    alone = train.run(tiny_arguments(tmp_path / "images", tmp_path / "alone", *OPTIONS, flags=flags))
    assert alone["ece"] == pytest.approx(first["result"]["ece"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_resume_exactly(whole, tmp_path):
    arguments = tiny_arguments(tmp_path / "images", tmp_path / "run", *OPTIONS)
    codes, reports = start_both(tmp_path, arguments, stop_in_epoch=2)
    assert 0 not in codes
    assert reports == []
    assert run_state(tmp_path / "run") != "done"
    with pytest.raises(ValueError, match="of a run with 2 processes, this one has 1"):
        train.run(arguments)
    codes, reports = start_both(tmp_path, arguments)
    assert codes == [0, 0], (tmp_path / "out.txt").read_text()[-3000:]
    for ours, theirs in zip(reports, whole[2]):
        assert ours["weights"] == theirs["weights"]
        assert ours["seen"] == theirs["seen"][18:]
        assert ours["draw"] == theirs["draw"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_elastic_restart_resumes_exactly(whole, tmp_path):
    """A process dies in the last epoch, the launcher starts both again: they go on from the last whole epoch."""
    codes, _ = launch(tmp_path, 1, *ONE_MACHINE, "--max-restarts=1", STOP_IN_EPOCH=str(EPOCHS - 1))
    assert codes == [0], (tmp_path / "out.txt").read_text()[-3000:]
    for ours, theirs in zip(reports_in(tmp_path / "reports"), whole[2], strict=True):
        assert ours["weights"] == theirs["weights"]
        assert ours["seen"] == theirs["seen"][-9:]
        assert ours["draw"] == theirs["draw"]
    assert run_state(tmp_path / "run") == "done"


def launch_machines(folder, **variables):
    """Two launchers of one process each, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=job", "--local_addr=127.0.0.1"]
    return launch(folder, 2, *flags, f"--rdzv_endpoint=127.0.0.1:{port}", **variables)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_end_together_and_go_on_when_started_again(whole, tmp_path):
    codes, seconds = launch_machines(tmp_path, STOP_IN_EPOCH="2")
    assert 0 not in codes
    assert seconds < 60
    assert reports_in(tmp_path / "reports") == []
    codes, _ = launch_machines(tmp_path)
    assert codes == [0, 0], (tmp_path / "out.txt").read_text()[-3000:]
    for ours, theirs in zip(reports_in(tmp_path / "reports"), whole[2]):
        assert ours["weights"] == theirs["weights"]
        assert ours["seen"] == theirs["seen"][18:]
        assert ours["draw"] == theirs["draw"]
    assert run_state(tmp_path / "run") == "done"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gradients_are_those_of_the_whole_batch(tmp_path):
    """Two processes with 9 images each take the step of one with 18, when nothing random is in the model."""
    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1, "INPUT.TRANSFORMS", "['normalize']")
    two = ("DATALOADER.TRAIN_X.BATCH_SIZE", 9, "TRAINER.TINY.DROPOUT", 0.0)
    codes, reports = start_both(tmp_path, tiny_arguments(tmp_path / "images", tmp_path / "two", *options, *two))
    assert codes == [0, 0], (tmp_path / "out.txt").read_text()[-3000:]
    one = ("DATALOADER.TRAIN_X.BATCH_SIZE", 18, "TRAINER.TINY.DROPOUT", 0.0)
    train.run(tiny_arguments(tmp_path / "images", tmp_path / "one", *options, *one))
    state = torch.load(tmp_path / "one" / "tiny" / "model.pth.tar-1", weights_only=True)["state_dict"]
    weights = torch.cat([value.flatten() for value in state.values()])
    assert torch.allclose(weights, torch.tensor(reports[0]["weights"]), atol=1e-6)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed.init_distributed()
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank()) == (0, 1, 0)
    assert distributed.is_main_process()
    assert distributed.all_gather_object("a") == ["a"]
    assert distributed.broadcast_object("a") == "a"
    distributed.barrier()
    distributed.shutdown_distributed()


def test_incomplete_environment_is_explained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; start the run with torch"
    ):
        distributed.init_distributed()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'two'"):
        distributed.init_distributed()


def test_one_process_and_frozen_modules_are_not_wrapped(tmp_path):
    args = train.build_parser().parse_args(tiny_arguments(tmp_path / "images", tmp_path / "run"))
    trainer = command_module.build_trainer(train.build_config(args))
    layer = nn.Linear(1, 1)
    assert trainer.parallel(layer) is layer
    frozen = nn.Linear(1, 1).requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "get_world_size", lambda: 2)
        assert trainer.parallel(frozen) is frozen
