"""Behavior that can differ on a CUDA device, besides single steps: whole runs, workers, caches, transport, NCCL."""

import pytest
import torch
from test_trainers import backbone, built, root, run  # noqa: F401

from dassl.engine import TRAINER_REGISTRY
from trainers.align import align_logits
from transport.sinkhorn import sinkhorn

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
@pytest.mark.parametrize("reg", [0.1, 0.01])  # scalings, logarithms
def test_plans_equal_those_of_the_cpu(stop, reg, rng):
    cost = torch.rand(50, 20, 7, generator=rng)
    rows, cols = torch.full((20,), 1 / 20), torch.full((7,), 1 / 7)
    plans = [sinkhorn(cost.to(d), rows.to(d), cols.to(d), reg, stop=stop).plan.cpu() for d in ("cpu", "cuda")]
    torch.testing.assert_close(*plans, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_scores_and_gradients_equal_those_of_the_cpu(mode, rng):
    shapes = (3, 2, 16), (3, 2, 9, 16), (5, 2, 16), (5, 2, 6, 16)
    values = [torch.randn(shape, generator=rng) for shape in shapes]
    mask = torch.arange(6) < torch.randint(1, 7, (5, 2, 1), generator=rng)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [value.to(device).requires_grad_() for value in values]
        scores = align_logits(*leaves, mask.to(device), 10.0, mode=mode, fast=True).logits
        scores.square().sum().backward()
        found.append([scores.cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "amp", "fp16", "bf16"])
def test_a_killed_run_goes_on(precision, run, built, monkeypatch):  # noqa: F811
    """The loss scale is part of the state; workers pin their memory and images are cached."""
    own = ["TRAINER.MAPLE.PREC", precision, "OPTIM.MAX_EPOCH", 3]
    own += ["DATALOADER.NUM_WORKERS", 2, "DATALOADER.CACHE", "ram"]
    run("MaPLe", "whole", options=own)
    cls = TRAINER_REGISTRY.get("MaPLe")
    after_epoch = cls.after_epoch

    def stop(self):
        if self.epoch == 2:
            raise MemoryError("killed in the third epoch")
        after_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_epoch", stop)
        with pytest.raises(MemoryError):
            run("MaPLe", "stopped", options=own)
    run("MaPLe", "stopped", options=own)
    assert built[-1].start_epoch == 2
    scalers = [trainer.precision.scaler for trainer in (built[0], built[-1])]
    assert scalers[0] is None or scalers[0].state_dict() == scalers[1].state_dict()
    for one, other in zip(built[0].model.learner.parameters(), built[-1].model.learner.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)  # atomic additions have no fixed order


def test_memory_budget_and_feature_cache_change_nothing(run, built):  # noqa: F811
    own = ["TRAINER.COOP.PREC", "fp32", "OPTIM.MAX_EPOCH", 1]
    plain = run("CoOp", "plain", options=own)
    cached = ["TEST.FEATURE_CACHE", True]
    for number, extra in enumerate((["TRAIN.TEXT_CHUNK", 7], cached, cached)):
        found = run("CoOp", f"other{number}", options=[*own, *extra])
        assert found["accuracy"] == pytest.approx(plain["accuracy"], abs=1)
    for trainer in built[1:]:
        torch.testing.assert_close(trainer.model.learner.ctx, built[0].model.learner.ctx, rtol=1e-3, atol=1e-4)


def test_nccl_averages_over_one_process(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29561"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("nccl")
    try:
        value = torch.arange(3.0, device="cuda")
        torch.distributed.all_reduce(value)
        assert value.tolist() == [0, 1, 2]
        layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1).cuda(), device_ids=[0])
        layer(value).sum().backward()
        assert torch.equal(layer.module.weight.grad[0], value)
    finally:
        torch.distributed.destroy_process_group()
