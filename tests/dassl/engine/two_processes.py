"""One process of a training in two, which reports what it did; started by torchrun or by the tests directly.

As a program: python two_processes.py REPORTS ARGUMENT...  (a folder, then the command line of train.py). With
STOP_IN_EPOCH in the environment the second process dies in that epoch, unless the launcher has started it again.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.distributed.run import main as torchrun

import train
from dassl.config.imports import import_modules
from dassl.engine import TRAINER_REGISTRY
from dassl.engine import command as command_module
from dassl.utils import distributed


def start(rank, port, reports, arguments, log, stop_in_epoch=None):
    """Act as torchrun's launcher for a process; with stop_in_epoch the second one dies in that epoch (from 0)."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    run(reports, arguments, stop_in_epoch)


def launcher(arguments, log, variables):
    """Act as torchrun with these arguments in a process that has imported everything, as its workers then have, too."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os.environ.update(variables)
    torchrun(["--run-path", "--start-method=fork", *arguments])


def run(reports, arguments, stop_in_epoch=None):
    """Run train.main and write REPORTS/<rank>.json."""
    import_modules([arguments[arguments.index("--import") + 1]])
    tiny = TRAINER_REGISTRY.get("Tiny")
    init, step, build_result = tiny.__init__, tiny.forward_backward, command_module.build_result
    evaluated = []

    def remember(self, cfg):
        init(self, cfg)
        process = self.evaluator.process

        def processed(output, label):
            evaluated.append(len(label))
            process(output, label)

        self.evaluator.process = processed

    def stepped(self, batch):
        if self.epoch == stop_in_epoch and distributed.get_rank() == 1:
            (reports / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    def report(trainer, mode, seed, checkpoint=None):
        result = build_result(trainer, mode, seed, checkpoint)
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        content = {
            "rank": distributed.get_rank(),
            "weights": weights.tolist(),
            "seen": trainer.seen,
            "evaluated": sum(evaluated),
            "wrapped": type(trainer.wrapped).__name__,
            "draw": torch.rand(()).item(),
            "result": result,
        }
        (reports / f"{distributed.get_rank()}.json").write_text(json.dumps(content))
        return result

    tiny.__init__, tiny.forward_backward, command_module.build_result = remember, stepped, report
    train.main(arguments)


if __name__ == "__main__":
    again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if again and os.environ["RANK"] == "0":
        time.sleep(3)  # the other one looks for addresses first, when the launcher's store has only the old ones
    stop = None if again else os.environ.get("STOP_IN_EPOCH")
    run(Path(sys.argv[1]), sys.argv[2:], stop and int(stop))
