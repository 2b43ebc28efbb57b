"""Learning rates of every epoch, whole and interrupted."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import ConstantWarmupScheduler, LinearWarmupScheduler, build_lr_scheduler, build_optimizer
from dassl.utils import resume_from_checkpoint, save_checkpoint

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedules.json").read_text())
SCHEDULES = GOLDEN["schedules"] + GOLDEN["extra_schedules"]


def name(schedule):
    return "-".join(str(value).replace(" ", "") for key, value in schedule.items() if key.isupper())


def config(schedule):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["NAME", "sgd", "LR_SCHEDULER", "cosine", "WARMUP_TYPE", "constant"])
    cfg.merge_from_list([item for pair in schedule.items() if pair[0].isupper() for item in pair])
    return cfg


class Run:
    """A model that learns one step per epoch."""

    def __init__(self, cfg):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 2)
        self.optimizer = build_optimizer(self.model, cfg)
        self.scheduler = build_lr_scheduler(self.optimizer, cfg)

    def epochs(self, number):
        rates = []
        for _ in range(number):
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.model(torch.ones(1, 2)).sum().backward()
            self.optimizer.step()
            self.scheduler.step()
        return rates

    @property
    def rate(self):
        return self.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_golden_schedules(schedule):
    run = Run(config(schedule))
    rates = run.epochs(schedule["MAX_EPOCH"])
    assert rates == pytest.approx(schedule["lr"], rel=1e-12, abs=0)
    assert [f"{rate:.4e}" for rate in rates] == [f"{rate:.4e}" for rate in schedule["lr"]]
    assert run.rate == pytest.approx(schedule["after_last_step"], rel=1e-12, abs=0)
    assert run.scheduler.get_last_lr() == [run.rate]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_interrupted_at_every_epoch(schedule):
    """Bit for bit the rates of the run that was never stopped."""
    cfg, last = config(schedule), schedule["MAX_EPOCH"]
    whole = Run(cfg).epochs(last)
    states = []
    run = Run(cfg)
    for _ in range(last):
        file = io.BytesIO()
        torch.save((run.optimizer.state_dict(), run.scheduler.state_dict()), file)
        states.append(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        run.epochs(1)
    stops = range(last) if last <= 20 else (1, 2, 3, last // 2, last - 1)
    for stop in stops:
        resumed = Run(cfg)
        optimizer_state, scheduler_state = states[stop]
        resumed.optimizer.load_state_dict(optimizer_state)
        resumed.scheduler.load_state_dict(scheduler_state)
        assert resumed.epochs(min(last - stop, 30)) == whole[stop:][:30]


def test_closed_form():
    cfg = config({"MAX_EPOCH": 12, "LR": 0.02, "WARMUP_EPOCH": 2, "WARMUP_CONS_LR": 1e-4})
    expected = [1e-4] * 2 + [0.02 * (1 + math.cos(math.pi * (e - 3) / 12)) / 2 for e in range(3, 13)]
    assert Run(cfg).epochs(12) == pytest.approx(expected, rel=1e-12)


def test_linear_warmup():
    cfg = config({"MAX_EPOCH": 10, "LR": 0.02, "WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear", "WARMUP_MIN_LR": 1e-6})
    rates = Run(cfg).epochs(6)
    assert rates[:5] == pytest.approx([1e-6, 0.005, 0.01, 0.015, 0.02], rel=1e-12)
    assert rates[5] == pytest.approx(0.02 * (1 + math.cos(math.pi / 10)) / 2, rel=1e-12)


def test_step_schedules():
    single = {"LR_SCHEDULER": "single_step", "MAX_EPOCH": 4, "LR": 1.0, "GAMMA": 0.1}
    assert Run(config({**single, "STEPSIZE": (1, 2)})).epochs(5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert Run(config({**single, "STEPSIZE": (-1,)})).epochs(5) == pytest.approx([1, 1, 1, 1, 0.1])
    several = {"LR_SCHEDULER": "multi_step", "MAX_EPOCH": 4, "LR": 1.0, "GAMMA": 0.5, "STEPSIZE": (1, 3)}
    assert Run(config(several)).epochs(5) == pytest.approx([1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("kind", ["cosine", "multi_step", "single_step"])
@pytest.mark.parametrize("warmup", [-1, 2])
def test_through_a_checkpoint_file(tmp_path, kind, warmup):
    schedule = {"LR_SCHEDULER": kind, "MAX_EPOCH": 8, "LR": 0.1, "WARMUP_EPOCH": warmup, "STEPSIZE": (2, 4)}
    cfg = config(schedule)
    whole = Run(cfg).epochs(8)
    run = Run(cfg)
    run.epochs(3)
    state = {"state_dict": run.model.state_dict(), "epoch": 3}
    state.update(optimizer=run.optimizer.state_dict(), scheduler=run.scheduler.state_dict())
    save_checkpoint(state, tmp_path)
    resumed = Run(cfg)
    assert resume_from_checkpoint(tmp_path, resumed.model, resumed.optimizer, resumed.scheduler) == 3
    assert resumed.epochs(5) == whole[3:]


def test_scheduler_state_alone_restores_the_rate():
    cfg = config({"MAX_EPOCH": 6, "LR": 0.1, "WARMUP_EPOCH": 1})
    run = Run(cfg)
    run.epochs(3)
    other = Run(cfg)
    other.scheduler.load_state_dict(run.scheduler.state_dict())
    assert other.rate == run.rate
    assert other.scheduler.get_last_lr() == [run.rate]
    with pytest.raises(ValueError, match="2 learning rates for 1 parameter groups"):
        other.scheduler.load_state_dict({**run.scheduler.state_dict(), "last_lr": [0.1, 0.2]})


def test_groups_keep_their_own_rates():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 0.5}])
    scheduler = LinearWarmupScheduler(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4), 2, 0.1)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    cosine = (1 + math.cos(math.pi / 4)) / 2
    assert rates == [[0.1, 0.1], [0.5, 0.25], [1.0, 0.5], pytest.approx([cosine, cosine / 2])]


def test_constant_warmup_with_any_successor():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    successor = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler = ConstantWarmupScheduler(optimizer, successor, 2, 0.01)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.01, 0.01, 1.0, 0.5, 0.25]


def test_faults():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    for key, value, words in (
        ("LR_SCHEDULER", "poly", "'poly', expected one of single_step, multi_step, cosine"),
        ("WARMUP_TYPE", "cosine", "'cosine', expected constant or linear"),
    ):
        cfg = config({"WARMUP_EPOCH": 1})
        cfg[key] = value
        with pytest.raises(ValueError, match=words):
            build_lr_scheduler(optimizer, cfg)
    with pytest.raises(ValueError, match="expected at least one integer"):
        build_lr_scheduler(optimizer, config({"LR_SCHEDULER": "multi_step", "STEPSIZE": ()}))


def test_cosine_by_batch():
    """Against the closed form: three batches per epoch, one epoch of warm-up, a group with half the rate."""
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["LR_SCHEDULER", "batch_cosine", "LR", 0.4, "MAX_EPOCH", 4, "WARMUP_EPOCH", 1])
    cfg.merge_from_list(["WARMUP_MIN_LR", 0.1, "FINAL_LR", 0.02])
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}], lr=0.4)
    scheduler = build_lr_scheduler(optimizer, cfg, batches=3)
    rates = []
    for _ in range(12):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [0.1, 0.2, 0.3] + [0.02 + 0.38 * math.cos(math.pi * t / 18) ** 2 for t in range(9)]
    assert [whole for whole, _ in rates] == pytest.approx(expected)
    assert [half for _, half in rates] == pytest.approx([rate / 2 for rate in expected])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    fresh = build_lr_scheduler(torch.optim.SGD(parameters, lr=0.4), cfg, batches=3)
    fresh.load_state_dict(scheduler.state_dict())
    assert fresh.last_epoch == 12


@pytest.mark.parametrize(
    ("option", "batches", "message"),
    [
        (["WARMUP_TYPE", "constant"], 3, "linear warm-up only"),
        (["WARMUP_EPOCH", 10], 3, "a warm-up of 30 batches"),
        ([], None, "by epoch"),
    ],
)
def test_cosine_by_batch_refuses(option, batches, message):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["LR_SCHEDULER", "batch_cosine", "WARMUP_EPOCH", 1, *option])
    with pytest.raises(ValueError, match=message):
        build_lr_scheduler(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), cfg, batches)
