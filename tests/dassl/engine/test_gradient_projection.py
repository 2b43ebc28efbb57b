"""Steps that a second loss bends: gradients, checks, loss scaling, several processes."""

import multiprocessing
import socket

import pytest
import torch
from projected_process import combine, losses, start
from torch import nn

from dassl.engine.precision import GradientProjection, Precision


class Scaler:
    """Stands for torch's gradient scaler: a step with a non-finite gradient is skipped."""

    def __init__(self, scale):
        self.scale_value, self.found, self.skipped = scale, False, 0

    def scale(self, loss):
        return loss * self.scale_value

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.found |= not bool(torch.isfinite(parameter.grad).all())
                parameter.grad /= self.scale_value

    def step(self, optimizer):
        if self.found:
            self.skipped += 1
        else:
            optimizer.step()

    def update(self):
        self.found = False

    def get_scale(self):
        return self.scale_value


def two_parameters():
    first, second = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([2.0, 3.0]))
    return first, second, torch.optim.SGD([first, second], lr=0.1)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_step_takes_the_combined_gradient(scale):
    first, second, optimizer = two_parameters()
    precision = Precision("fp32", "cpu")
    precision.scaler = None if scale is None else Scaler(scale)
    for _ in range(2):
        loss, guide = 3 * first + second.sum(), (second * torch.tensor([1.0, -1.0])).sum()
        projection = GradientProjection(guide, lambda gradient, other: gradient + 10 * other)
        precision.step(loss, [optimizer], [first, second], projection=projection)
    assert first.item() == pytest.approx(1 - 2 * 0.1 * 3)  # the second loss does not depend on it
    assert second.tolist() == pytest.approx([2 - 2 * 0.1 * 11, 3 - 2 * 0.1 * -9])


def test_a_guide_that_is_infinite_changes_nothing():
    first, second, optimizer = two_parameters()
    projection = GradientProjection(first * float("inf"), lambda gradient, other: gradient)
    with pytest.raises(FloatingPointError, match=r"^epoch 2, batch 7: Loss is infinite or NaN!"):
        Precision("fp32", "cpu").step(
            first + second.sum(), [optimizer], [first], where="epoch 2, batch 7", projection=projection
        )
    assert first.item() == 1.0


@pytest.mark.parametrize("bad", ["loss", "guide"])
def test_an_infinite_gradient_of_either_loss_is_noticed(bad):
    first, second, optimizer = two_parameters()
    with torch.no_grad():
        first.zero_()
    broken = first.sqrt()  # finite, but its gradient at 0 is not
    good = second.sum() + first
    loss, guide = (broken, good) if bad == "loss" else (good, broken)
    projection = GradientProjection(guide, lambda gradient, other: torch.ones_like(gradient))
    precision = Precision("fp32", "cpu")
    with pytest.raises(FloatingPointError, match="its gradient is infinite or NaN"):
        precision.step(loss, [optimizer], [first, second], projection=projection)
    precision.scaler = Scaler(1024.0)
    loss, guide = (first.sqrt(), second.sum() + first)[:: 1 if bad == "loss" else -1]
    precision.step(loss, [optimizer], [first, second], projection=GradientProjection(guide, projection.combine))
    assert precision.scaler.skipped == 1
    assert (first.item(), second.tolist()) == (0.0, [2.0, 3.0])


@pytest.mark.slow
def test_gradients_are_averaged_over_processes_before_they_are_combined(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    data = {"rows": [torch.randn(4, 3) for _ in range(2)], "state": state}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    both = [context.Process(target=start, args=(rank, port, data, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    parameters = list(layer.parameters())
    for rows in data["rows"]:
        first, second = (torch.autograd.grad(losses(layer, rows)[i], parameters) for i in (0, 1))
        with torch.no_grad():
            for parameter, gradient, guide in zip(parameters, first, second):
                parameter -= 0.1 * combine(gradient, guide)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(found[0][name], value)
        assert torch.equal(found[0][name], found[1][name])
