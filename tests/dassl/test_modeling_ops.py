"""Operations for trainers written for Dassl."""

import math

import pytest
import torch
from torch import nn

from dassl.modeling.ops import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)


def test_probabilities_and_labels():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    assert torch.allclose(sharpen_prob(p, 2), p**2 / 0.38)
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert sorted(shuffle_index(torch.arange(20)).tolist()) == list(range(20))


def test_ramps():
    assert [linear_rampup(x, 4) for x in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert linear_rampup(3, 0) == 1
    assert sigmoid_rampup(0, 4) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(9, 4) == 1


def test_average_of_models():
    model, average = nn.Linear(1, 1), nn.Linear(1, 1)
    expected = 0.9 * average.weight.item() + 0.1 * model.weight.item()
    ema_model_update(model, average, 0.9)
    assert average.weight.item() == pytest.approx(expected)
