"""One of two processes that take a step with gradient projection together; started by the tests."""

import os

import torch
from torch import nn

from dassl.engine.precision import GradientProjection, Precision
from dassl.utils import distributed


def losses(layer, rows):
    """The minimised loss and the second one."""
    output = layer(rows)
    return output.square().mean(), (output[:, 0] - 2 * output[:, 1]).mean()


def combine(gradient, guide):
    """Not linear in the gradients, so that it matters whether they are averaged before."""
    return gradient + guide * (gradient * guide).sum()


def start(rank, port, data, folder):
    """Two steps on this process's half of the rows of `data`; the weights go to FOLDER/<rank>.pt."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    distributed.init_distributed(use_cuda=False)
    layer = nn.Linear(3, 2)
    layer.load_state_dict(data["state"])
    wrapped = nn.parallel.DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for rows in data["rows"]:
        loss, guide = losses(wrapped, rows[rank::2])
        Precision("fp32", "cpu").step(
            loss, [optimizer], layer.parameters(), projection=GradientProjection(guide, combine)
        )
    torch.save(layer.state_dict(), folder / f"{rank}.pt")
    distributed.shutdown_distributed()
