"""Lack of memory, shared memory and lost workers: one line with advice, and one more try where that helps."""

import os
import signal
import sys

import pytest
import torch
from tiny_runs import tiny_arguments

import train
from dassl.data.data_manager import DatasetWrapper
from dassl.engine.status import run_state
from dassl.utils.errors import error_line, lost_worker

WORKER = "DataLoader worker (pid 10168) is killed by signal: Killed. "
BUS = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of sha"
)
GONE = "DataLoader worker (pid(s) 5, 6) exited unexpectedly"
SHM = "unable to allocate shared memory(shm) for file </torch_2_1_0>: Resource temporarily unavailable (11)"
CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


@pytest.mark.parametrize(
    ("err", "shown", "lost"),
    [
        (RuntimeError(WORKER), "NUM_WORKERS", True),
        (RuntimeError(BUS), "/dev/shm", True),
        (RuntimeError(GONE), "NUM_WORKERS", True),
        (RuntimeError(SHM), "--shm-size", True),
        (OSError(24, "Too many open files"), "ulimit", True),
        (RuntimeError(CPU), "MEMORY_BUDGET", False),
        (MemoryError(), "BATCH_SIZE", False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "MEMORY_BUDGET", False),
    ],
    ids=lambda value: str(value)[:25],
)
def test_advice(err, shown, lost):
    line = error_line(err)
    assert shown in line
    assert "\n" not in line
    assert lost_worker(err) is lost


def test_other_errors_are_no_lack_of_anything():
    assert error_line(RuntimeError("size mismatch")) == "size mismatch"
    assert not lost_worker(RuntimeError("size mismatch"))


@pytest.mark.parametrize("err", [MemoryError(), RuntimeError(CPU)], ids=str)
def test_out_of_memory_is_one_line_and_the_state_is_kept(tiny, tmp_path, monkeypatch, capsys, err):
    from dassl.engine.simple import SimpleTrainer

    def stop(trainer):
        if trainer.epoch == 2:
            raise err

    whole = tiny(output="whole")
    with monkeypatch.context() as patch:
        patch.setattr(SimpleTrainer, "after_epoch", stop)
        with pytest.raises(SystemExit):
            train.main(tiny_arguments(tmp_path / "images", tmp_path / "run"))
    assert "memory left" in capsys.readouterr().err.splitlines()[-1]
    assert run_state(tmp_path / "run") == "failed"
    assert "MEMORY_BUDGET" in (tmp_path / "run" / "FAILED").read_text()
    assert tiny()["ece"] == whole["ece"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forks")
def test_a_killed_worker_costs_a_new_start_with_fewer(tiny, tmp_path, monkeypatch, caplog):
    whole = tiny(output="whole")
    main, real = os.getpid(), DatasetWrapper.__getitem__
    flag = tmp_path / "killed"

    def killed_once(self, index):
        if os.getpid() != main and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    monkeypatch.setattr(DatasetWrapper, "__getitem__", killed_once)
    result = tiny("DATALOADER.NUM_WORKERS", 2)
    assert flag.exists()
    assert "Started again with DATALOADER.NUM_WORKERS 0" in caplog.text
    assert (result["ece"], result["accuracy"]) == (whole["ece"], whole["accuracy"])
