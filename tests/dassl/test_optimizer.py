"""Optimisers by name."""

import pytest
import torch
from fake_cuda import FakeCuda
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_optimizer
from dassl.optim.lamb import Lamb
from dassl.optim.radam import RAdam


@pytest.fixture
def cfg():
    cfg = get_cfg_default().OPTIM
    cfg.LR = 0.01
    return cfg


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


COMMON = {"lr": 0.01, "weight_decay": 5e-4}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adam", torch.optim.Adam, {**ADAM, "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {**ADAM, "amsgrad": True}),
        ("adamw", torch.optim.AdamW, ADAM),
        ("radam", RAdam, {**ADAM, "decoupled_weight_decay": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.0, "nesterov": False}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.99}),
    ],
)
def test_options_come_from_the_config(cfg, model, name, kind, options):
    cfg.NAME = name
    optimizer = build_optimizer(model, cfg)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in (*COMMON, *options)} == {**COMMON, **options}
    assert len(group["params"]) == 4


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "radam"])
def test_eps_of_the_adam_family(cfg, model, name):
    cfg.NAME, cfg.ADAM_EPS = name, 1e-3
    assert build_optimizer(model, cfg).param_groups[0]["eps"] == 1e-3


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw"])
def test_a_gpu_takes_one_kernel_and_the_same_steps(cfg, name):
    """On a pretended device; a state from there goes on here."""
    cfg.NAME, cfg.WEIGHT_DECAY = name, 0.01
    first = nn.Linear(3, 2)
    here, last = (nn.Linear(3, 2) for _ in range(2))
    here.load_state_dict(first.state_dict())
    with FakeCuda() as gpu:
        there = nn.Linear(3, 2)
        there.load_state_dict(first.state_dict())
        there.to("cuda")
        ours, plain = (build_optimizer([{"params": m.parameters()}], cfg) for m in (there, here))
        for step in range(3):
            for model in (here, there):
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, 0.1 * step - 0.1)
            gpu.waits.clear()
            ours.step()
            assert gpu.waits == []
            plain.step()
        assert [group["fused"] for group in ours.param_groups + plain.param_groups] == [True, None]
        for one, other in zip(there.parameters(), here.parameters()):
            torch.testing.assert_close(one.cpu(), other)
        state, weights = ours.state_dict(), {key: value.cpu() for key, value in there.state_dict().items()}
        for moments in state["state"].values():
            moments.update({key: value.cpu() for key, value in moments.items() if isinstance(value, torch.Tensor)})
    last.load_state_dict(weights)
    resumed = build_optimizer(last, cfg)
    resumed.load_state_dict(state)
    for optimizer, model in ((resumed, last), (plain, here)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for one, other in zip(last.parameters(), here.parameters()):
        torch.testing.assert_close(one, other)


def test_radam_against_its_formula():
    """Liu et al., 2020, algorithm 2, with decoupled weight decay."""
    parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.double))
    optimizer = RAdam([parameter], lr=0.1, weight_decay=0.01)
    x, m, v = 2.0, 0.0, 0.0
    b1, b2 = 0.9, 0.999
    rho_inf = 2 / (1 - b2) - 1
    for t in range(1, 10):
        parameter.grad = 2 * parameter.detach()
        optimizer.step()
        g = 2 * x
        x *= 1 - 0.1 * 0.01
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        step = m / (1 - b1**t)
        if rho > 5:
            r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
            step *= r * (1 - b2**t) ** 0.5 / (v**0.5 + 1e-8)
        x -= 0.1 * step
        assert parameter.item() == pytest.approx(x, rel=1e-6)


def test_iterables_and_groups(cfg, model):
    cfg.NAME = "sgd"
    assert len(build_optimizer(iter(model[0].parameters()), cfg).param_groups[0]["params"]) == 2
    groups = [{"params": [model[0].weight], "lr": 1.0}, {"params": [model[1].weight]}]
    assert [group["lr"] for group in build_optimizer(model, cfg, param_groups=groups).param_groups] == [1.0, 0.01]


def test_frozen_parameters_do_not_move(cfg, model):
    cfg.NAME = "sgd"
    model[0].requires_grad_(False)
    before = model[0].weight.clone(), model[1].weight.clone()
    optimizer = build_optimizer(model, cfg)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[1].weight, before[1])


def test_staged_rates(cfg):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.zeros(1))
            self.body = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    net = Net()
    cfg.merge_from_list(["NAME", "sgd", "STAGED_LR", "True", "NEW_LAYERS", "('head',)", "BASE_LR_MULT", "0.5"])
    old, new = build_optimizer(net, cfg).param_groups
    assert (old["lr"], new["lr"]) == (0.005, 0.01)
    assert {id(p) for p in old["params"]} == {id(net.own), id(net.body.weight), id(net.body.bias)}
    assert {id(p) for p in new["params"]} == {id(net.head.weight), id(net.head.bias)}
    cfg.NEW_LAYERS = ("tail",)
    with pytest.raises(ValueError, match="NEW_LAYERS names tail, but the layers of the model are body, head"):
        build_optimizer(net, cfg)
    with pytest.raises(ValueError, match="needs a module"):
        build_optimizer(net.parameters(), cfg)


def test_staged_rates_are_ignored_for_groups(cfg, model, caplog):
    cfg.STAGED_LR = True
    assert len(build_optimizer(model, cfg, param_groups=model.parameters()).param_groups) == 1
    assert "STAGED_LR is ignored" in caplog.text


def test_unknown_name(cfg, model):
    cfg.NAME = "sdg"
    with pytest.raises(ValueError, match="'sdg', expected one of adam, amsgrad, sgd, rmsprop, radam, adamw"):
        build_optimizer(model, cfg)


def lamb_steps(cls, options, steps=5, scale=1.0):
    """Parameters after some steps on fixed gradients: a group with and one without weight decay."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator), torch.zeros(2, 2)]
    gradients = [[scale * torch.randn(p.shape, generator=generator) for p in start] for _ in range(steps)]
    parameters = [nn.Parameter(p.clone()) for p in start]
    groups = [{"params": [parameters[0], parameters[2]], "weight_decay": 0.05, "lr": 0.02}]
    optimizer = cls([*groups, {"params": [parameters[1]], "weight_decay": 0.0}], lr=0.1, betas=(0.8, 0.95), **options)
    for row in gradients:
        for parameter, gradient in zip(parameters, row):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({}, {}),
        ({"max_norm": 0}, {"max_grad_norm": None}),
        ({"max_norm": 0.3, "adapt_all": True}, {"max_grad_norm": 0.3, "always_adapt": True}),
        ({"eps": 1e-2}, {"eps": 1e-2}),
    ],
)
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_lamb_equals_that_of_timm(own, other, scale):
    timm = pytest.importorskip("timm.optim")
    for found, expected in zip(lamb_steps(Lamb, own, scale=scale), lamb_steps(timm.Lamb, other, scale=scale)):
        torch.testing.assert_close(found, expected)


def test_the_first_step_of_lamb_in_closed_form():
    """Before any average Adam's direction is the sign of the gradient, so the step is lr * |x| along sign + wd * x."""
    x = torch.tensor([3.0, -4.0], dtype=torch.double)
    parameter = nn.Parameter(x.clone())
    parameter.grad = torch.tensor([0.2, 0.5], dtype=torch.double)
    optimizer = Lamb([parameter], lr=0.1, eps=0.0, weight_decay=0.01)
    optimizer.step()
    direction = torch.tensor([1 + 0.03, 1 - 0.04], dtype=torch.double)
    torch.testing.assert_close(parameter.detach(), x - 0.1 * 5 * direction / direction.norm())


def test_lamb_from_the_config_and_its_faults(cfg, model):
    cfg.NAME, cfg.LAMB_MAX_NORM = "lamb", 0.5
    optimizer = build_optimizer(model, cfg)
    assert type(optimizer) is Lamb
    assert optimizer.max_norm == 0.5
    with pytest.raises(ValueError, match="eps of LAMB is -1"):
        Lamb(model.parameters(), eps=-1)
