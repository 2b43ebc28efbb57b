"""The precision switch and the optimisation step."""

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine.machine import set_backends
from dassl.engine.precision import PRECISIONS, AccumulationStep, Precision, auto_precision


@pytest.mark.parametrize(
    ("asked", "used", "dtype", "product"),
    [
        ("fp32", "fp32", torch.float32, torch.float32),
        ("fp16", "fp32", torch.float32, torch.float32),
        ("amp", "amp", torch.float32, torch.bfloat16),
        ("bf16", "bf16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_what_each_name_means_on_a_cpu(asked, used, dtype, product, caplog, monkeypatch):
    monkeypatch.setattr("dassl.engine.precision.half_cost", lambda: 0.5)  # which is no reason for a warning
    precision = Precision(asked, "cpu")
    assert (precision.name, precision.dtype, precision.scaler) == (used, dtype, None)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == product
    assert len(caplog.records) == (asked == "fp16")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype", "product", "scaled"),
    [
        ("fp32", torch.float32, torch.float32, False),
        ("fp16", torch.float16, torch.float16, True),
        ("amp", torch.float32, torch.float16, True),
        ("bf16", torch.bfloat16, torch.bfloat16, False),
    ],
)
def test_what_each_name_means_on_a_gpu(name, dtype, product, scaled):
    precision = Precision(name, "cuda")
    assert (precision.name, precision.dtype, precision.scaler is not None) == (name, dtype, scaled)
    ones = torch.ones(2, 2, device="cuda")
    with precision.autocast():
        assert (ones @ ones).dtype == product
    layer = nn.Linear(2, 2).cuda()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with precision.autocast():
        loss = layer(ones).float().sum()
    precision.step(loss, [optimizer], layer.parameters())
    # the gradient of the sum of two equal rows of ones is 2 everywhere, whatever the loss was scaled by
    assert torch.allclose(layer.weight, before - 2.0)


@pytest.mark.parametrize(("supported", "used"), [(True, "amp"), (False, "fp32")])
def test_auto_asks_the_processor(monkeypatch, supported, used):
    monkeypatch.setattr("dassl.engine.precision.cpu_has_bfloat16", lambda: supported)
    monkeypatch.setattr("dassl.engine.precision.half_cost", lambda: 0.5)
    assert Precision("auto", "cpu").name == used


@pytest.mark.parametrize(("capability", "used"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "amp")])
def test_auto_asks_the_gpu(monkeypatch, capability, used):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert auto_precision(torch.device("cuda")) == used


@pytest.mark.parametrize("gpu", [False, True])
def test_tf32_is_off_unless_asked_for(monkeypatch, gpu):
    cfg, before = get_cfg_default(), (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    fused = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "cudnn")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    try:
        for cfg.TRAIN.TF32, chosen in ((True, (True, "high")), (False, (False, "highest"))):
            set_backends(cfg)
            found = (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
            assert found == (chosen if gpu else before)
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
    assert all(fused)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'half', expected one of fp32, fp16, amp, bf16"):
        Precision("half", "cpu")
    assert len(PRECISIONS) == 5


def test_step_is_zero_grad_backward_and_step_of_every_optimizer():
    first, second = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
    optimizers = [torch.optim.SGD([first], lr=0.1), torch.optim.SGD([second], lr=0.5)]
    precision = Precision("fp32", "cpu")
    for _ in range(2):  # gradients of the first step are gone in the second
        precision.step(3 * first + second, optimizers, [first, second])
    assert first.item() == pytest.approx(1.0 - 2 * 0.1 * 3)
    assert second.item() == pytest.approx(2.0 - 2 * 0.5)


def test_infinite_loss_names_place_and_terms_and_changes_nothing():
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    terms = {"ce": weight * float("nan"), "l1": weight, "kl": weight * float("inf")}
    with pytest.raises(FloatingPointError, match=r"^epoch 3, batch 5: Loss is infinite or NaN! \(ce = nan, kl = inf\)"):
        Precision("fp32", "cpu").step(sum(terms.values()), [optimizer], [weight], terms, "epoch 3, batch 5")
    assert weight.item() == 1.0


def test_infinite_gradient_of_a_finite_loss_changes_nothing():
    weight = nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(FloatingPointError, match="its gradient is infinite or NaN"):
        Precision("fp32", "cpu").step(weight.sqrt().sum(), [optimizer], [weight])
    assert weight.tolist() == [0.0, 1.0]


class CountingScaler:
    """Stands for a gradient scaler on a machine without a GPU."""

    def __init__(self, scale):
        self.scale_value, self.calls = scale, []

    def scale(self, loss):
        return loss * self.scale_value

    def unscale_(self, optimizer):
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.scale_value

    def step(self, optimizer):
        self.calls.append("step")
        optimizer.step()

    def update(self):
        self.calls.append("update")

    def get_scale(self):
        return self.scale_value


def test_scaled_step_unscales_before_it_steps():
    weight = nn.Parameter(torch.tensor(1.0))
    precision = Precision("fp32", "cpu")
    precision.scaler = CountingScaler(1024.0)
    precision.step(2 * weight, [torch.optim.SGD([weight], lr=0.1)], [weight])
    assert weight.item() == pytest.approx(0.8)
    assert precision.scaler.calls == ["unscale", "step", "update"]


def test_scale_that_never_recovers_stops_the_run():
    weight = nn.Parameter(torch.tensor(1.0))
    precision = Precision("fp32", "cpu")
    precision.scaler = CountingScaler(2.0**-20)
    with pytest.raises(FloatingPointError, match="in every step"):
        precision.step((weight - 1).sqrt(), [torch.optim.SGD([weight], lr=0.1)], [weight])


@pytest.mark.parametrize("prec", PRECISIONS)
def test_a_run_learns_in_every_precision(tiny, prec):
    result = tiny("TRAINER.TINY.PREC", prec, "OPTIM.MAX_EPOCH", 8)
    auto = Precision("auto", result["device"]).name
    on_cpu = {"fp16": "fp32"} if result["device"] == "cpu" else {}
    assert result["precision"] == {"auto": auto, **on_cpu}.get(prec, prec)
    assert result["accuracy"] > 60  # chance is 33


def test_several_batches_make_one_step():
    """The step of the mean loss of three batches, with gradients cleared before the first and kept until the last."""
    torch.manual_seed(0)
    layer, batches = nn.Linear(3, 1), torch.randn(3, 4, 3)
    expected = layer.weight.detach().clone() - torch.autograd.grad(layer(batches).pow(2).mean(), layer.weight)[0]
    optimizer, precision = torch.optim.SGD(layer.parameters(), lr=1.0), Precision("fp32", "cpu")
    layer.weight.grad = torch.ones_like(layer.weight)
    for i, batch in enumerate(batches):
        part = AccumulationStep(first=i == 0, last=i == 2, share=1 / 3)
        precision.step(layer(batch).pow(2).mean(), [optimizer], layer.parameters(), part=part)
    torch.testing.assert_close(layer.weight.detach(), expected)
