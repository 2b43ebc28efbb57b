"""clip.linear against torch's own linear layer. oneDNN is chosen here on every processor that has it."""

import pytest
import torch
import torch.nn.functional as F

from clip import linear
from clip.layers import Attention, Perceptron


@pytest.fixture
def calls(monkeypatch):
    """Makes oneDNN be chosen and lists the shapes it was given."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    made = []
    product = linear._product
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "_product", lambda *args: made.append(tuple(args[0].shape)) or product(*args))
    return made


def tensors(rows=(4, 9), inputs=24, outputs=40, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight, torch.randn(outputs, generator=generator) if bias else None


def gradients(function, given):
    leaves = [t.clone().requires_grad_() for t in given if t is not None]
    out = function(*leaves)
    generator = torch.Generator().manual_seed(9)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(16,), (4, 9), (2, 3, 50)])
def test_values_and_gradients_are_those_of_torch(calls, rows, bias):
    given = tensors(rows, bias=bias)
    found, expected = gradients(linear.linear, given), gradients(F.linear, given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert len(calls) == 3  # forward, gradient of x, gradient of the weight


def test_a_frozen_weight_costs_no_product_and_keeps_no_input(calls):
    x, weight, bias = tensors()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = linear.linear(x.requires_grad_(), weight, bias)
    out.sum().backward()
    assert kept == [weight.shape]
    assert calls == [(36, 24), (36, 40)]
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("view", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[:1].expand(5, -1, -1)])
def test_inputs_that_are_not_contiguous(calls, view):
    x, weight, bias = tensors((6, 40))
    torch.testing.assert_close(
        linear.linear(view(x), weight, bias), F.linear(view(x), weight, bias), rtol=1e-5, atol=1e-4
    )
    assert len(calls) == 1


def test_gradients_that_are_expanded(calls):
    x, weight, bias = tensors()
    given = [t.requires_grad_() for t in (x, weight, bias)]
    found, expected = (torch.autograd.grad(f(*given).sum(), given) for f in (linear.linear, F.linear))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_second_derivative_is_refused_and_not_wrong(calls):
    x, weight, bias = tensors()
    (grad,) = torch.autograd.grad(linear.linear(x.requires_grad_(), weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_everything_else_is_left_to_torch(calls):
    x, weight, bias = tensors()
    assert torch.equal(linear.linear(x[0], weight, bias), F.linear(x[0], weight, bias))  # 9 rows
    half = linear.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert torch.equal(half, F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.linear(x, weight, bias).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        linear.linear(x, weight, bias)
    torch.jit.trace(lambda v: linear.linear(v, weight, bias), x, check_trace=False)
    with pytest.raises(RuntimeError, match="dtype"):
        linear.linear(x, weight.double(), bias)
    assert calls == []


def test_off_switch(calls):
    given = tensors()
    try:
        linear.use_onednn(False)
        assert torch.equal(linear.linear(*given), F.linear(*given))
        assert calls == []
    finally:
        linear.use_onednn(True)
    linear.linear(*given)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("maker", "instructions", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "", False),
    ],
)
def test_where_onednn_is_chosen(monkeypatch, maker, instructions, expected):
    monkeypatch.setattr(linear, "_processor", lambda: f"vendor_id: {maker}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert linear.onednn_is_faster.__wrapped__() == (expected and available)


def test_torch_without_the_operator_is_used_as_it_is(monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(linear, "_processor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(linear, "_product", missing)
    assert linear.onednn_is_faster.__wrapped__() is False


def test_the_layers_of_the_towers_use_it(calls):
    """Every product of the transformers: in, out, two of the perceptron."""
    for layer in (Attention(32, 4), Perceptron(32, 64, quick_gelu=True)):
        layer(torch.randn(3, 8, 32))
    assert calls == [(24, 32), (24, 32), (24, 32), (24, 64)]
