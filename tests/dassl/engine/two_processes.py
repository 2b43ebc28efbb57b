"""What torchrun starts in test_processes.py: a training in two processes that tells what each of them did.

Arguments: a folder for the reports, then the command line of train.py. With STOP_IN_EPOCH in the environment the second
process dies in that epoch (from 0).
"""

import json
import os
import sys
from pathlib import Path

import torch

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import distributed

reports, arguments = Path(sys.argv[1]), sys.argv[2:]
train.import_modules([arguments[arguments.index("--import") + 1]])
tiny = TRAINER_REGISTRY.get("Tiny")
init, step = tiny.__init__, tiny.forward_backward


def remember(self, cfg):
    init(self, cfg)
    train.trainer = self
    process = self.evaluator.process

    def processed(output, label):
        self.evaluated = getattr(self, "evaluated", 0) + len(label)
        process(output, label)

    self.evaluator.process = processed


def stepped(self, batch):
    if str(self.epoch) == os.environ.get("STOP_IN_EPOCH") and distributed.get_rank() == 1:
        os._exit(1)
    return step(self, batch)


shutdown = distributed.shutdown_distributed


def report():
    if "result_of_run" not in globals():  # the run failed
        return shutdown()
    trainer = train.trainer
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    content = {
        "rank": distributed.get_rank(),
        "weights": weights.tolist(),
        "seen": trainer.seen,
        "evaluated": trainer.evaluated,
        "wrapped": type(trainer.wrapped).__name__,
        "draw": torch.rand(()).item(),
        "result": result_of_run,
    }
    (reports / f"{distributed.get_rank()}.json").write_text(json.dumps(content))
    return shutdown()


def finish(trainer, mode, seed, checkpoint=None, original=train.build_result):
    global result_of_run
    result_of_run = original(trainer, mode, seed, checkpoint)
    return result_of_run


tiny.__init__, tiny.forward_backward = remember, stepped
train.build_result = finish
train.distributed.shutdown_distributed = report
train.main(arguments)
