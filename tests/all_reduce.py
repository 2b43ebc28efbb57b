"""One process of a group that averages gradients, for the tests."""

import torch
import torch.distributed as dist


def average(backend, device, rank, processes, place, answers):
    """Put the averaged gradient of x = rank + (0, 1, 2) and the sum of ones over the processes into a queue."""
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=processes)
    try:
        ones = torch.ones((), device=device)
        dist.all_reduce(ones)
        layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1).to(device))
        layer(rank + torch.arange(3.0, device=device)).sum().backward()
        answers.put((layer.module.weight.grad[0].tolist(), int(ones)))
    finally:
        dist.destroy_process_group()
