"""The contrastive loss of two processes over gloo against that of one process on both batches."""

import multiprocessing
import os
import socket

import pytest
import torch
from torch import nn

import clip
from dassl.utils import distributed
from trainers.parts.losses import contrastive_loss, global_contrastive_loss
from trainers.pretraining.contrastive import TwoTowers

ROWS = 3
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["trainers.pretraining.contrastive", "clip"])


def tiny_model():
    torch.manual_seed(0)
    return clip.CLIP(24, 32, 2, 64, 16, 77, 2048, 48, 2, 2)


def pairs():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2 * ROWS, 3, 32, 32, generator=generator)
    ids = torch.randint(1, 1500, (2 * ROWS, 5), generator=generator)
    ids[:, -1] = 2047
    positive = torch.eye(2 * ROWS, dtype=torch.bool)
    positive[0, 1] = positive[4, 3] = positive[3, 5] = True  # within one process or the other
    return image, ids, positive


def process(rank, port, folder, soft):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    distributed.init_distributed(use_cuda=False)
    model = tiny_model()
    towers = nn.parallel.DistributedDataParallel(TwoTowers(model, chunk=2))
    image, ids, positive = (tensor[rank * ROWS : (rank + 1) * ROWS] for tensor in pairs())
    own = positive[:, rank * ROWS : (rank + 1) * ROWS] if soft else None
    image, text, scale, _ = towers(image, ids, 1.0)
    keys = distributed.gather(image), distributed.gather(text)
    loss = global_contrastive_loss(image, text, *keys, scale, own, rank)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save({"loss": distributed.mean(loss.detach()), "gradients": gradients}, f"{folder}/{rank}.pt")
    distributed.shutdown_distributed()


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_two_processes_have_loss_and_gradients_of_the_whole_batch(tmp_path, soft):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [context.Process(target=process, args=(rank, port, str(tmp_path), soft)) for rank in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    model = tiny_model()
    image, ids, positive = pairs()
    loss = contrastive_loss(*TwoTowers(model)(image, ids, 1.0)[:3], positive if soft else None)
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(expected) > 30
    assert expected["logit_scale"].abs() > 0
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach())
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
