"""A run that is killed and goes on, the same for every dense task."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import importlib, os, signal, sys
import train

module, name = sys.argv[1:3]
trainer = getattr(importlib.import_module(module), name)
losses = trainer.losses

def killed(self, batch):
    if self.epoch == 1 and self.batch_idx == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(self, batch)

trainer.losses = killed
train.start(sys.argv[3:])
"""


def weights(folder: Path, epoch: int = 2) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model" / f"model.pth.tar-{epoch}", weights_only=True)["state_dict"]


@pytest.fixture
def whole_and_killed(tmp_path):
    """whole_and_killed(trainer, flags): results of a run of two epochs, and of one that is killed in the second and
    goes on with the same command, both with equal weights; flags(folder) is the command line."""

    def make(trainer, flags):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        program = [sys.executable, "-c", KILLED, trainer.__module__, trainer.__name__, *flags(killed)]
        done = subprocess.run(program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert not (killed / "result.json").exists()
        results = [train.main(flags(folder)) for folder in (whole, killed)]
        first, second = weights(whole), weights(killed)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        return results

    return make
