"""Behavior that can differ on a CUDA device, besides single steps: whole runs, workers, caches, transport, NCCL.

Every test is rehearsed without a GPU: on the pretended one of `fake_cuda`, or on the CPU where processes, workers or
compilers take part.
"""

import contextlib
import multiprocessing
import socket

import pytest
import torch
from all_reduce import average
from fake_cuda import FakeCuda
from test_fake_gpu import data, make, take_steps  # noqa: F401
from test_trainers import backbone, built, run  # noqa: F401

import clip
from dassl.engine import TRAINER_REGISTRY
from trainers.align import align_logits
from transport.sinkhorn import sinkhorn

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_emoji")]
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])


@pytest.fixture(params=["pretended", CUDA])
def gpu(request):
    """A machine on which `cuda` is a device."""
    with FakeCuda() if request.param == "pretended" else contextlib.nullcontext():
        yield


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
@pytest.mark.parametrize("reg", [0.1, 0.01])  # scalings, logarithms
def test_plans_equal_those_of_the_cpu(stop, reg, rng, gpu):
    cost = torch.rand(50, 20, 7, generator=rng)
    rows, cols = torch.full((20,), 1 / 20), torch.full((7,), 1 / 7)
    plans = [sinkhorn(cost.to(d), rows.to(d), cols.to(d), reg, stop=stop).plan.cpu() for d in ("cpu", "cuda")]
    torch.testing.assert_close(*plans, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_scores_and_gradients_equal_those_of_the_cpu(mode, rng, gpu):
    shapes = (3, 2, 16), (3, 2, 9, 16), (5, 2, 16), (5, 2, 6, 16)
    values = [torch.randn(shape, generator=rng) for shape in shapes]
    mask = torch.arange(6) < torch.randint(1, 7, (5, 2, 1), generator=rng)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [value.to(device).detach().requires_grad_() for value in values]
        scores = align_logits(*leaves, mask.to(device), 10.0, mode=mode, fast=True).logits
        scores.square().sum().backward()
        found.append([scores.cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


PRECISIONS = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("fp32", "amp", "fp16", "bf16")]


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), *PRECISIONS])
def test_a_killed_run_goes_on(device, precision, run, built, monkeypatch):  # noqa: F811
    """The loss scale is part of the state; workers pin their memory and images are cached."""
    own = ["TRAINER.MAPLE.PREC", precision, "OPTIM.MAX_EPOCH", 3, "USE_CUDA", device == "cuda"]
    own += ["DATALOADER.NUM_WORKERS", 2, "DATALOADER.CACHE", "ram"]
    run("MaPLe", "whole", options=own)
    cls = TRAINER_REGISTRY.get("MaPLe")
    after_epoch = cls.after_epoch

    def stop(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        after_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_epoch", stop)
        with pytest.raises(SystemExit):
            run("MaPLe", "stopped", options=own)
    run("MaPLe", "stopped", options=own)
    assert built[-1].start_epoch == 2
    assert built[-1].device.type == device
    assert built[-1].train_loader_x.pin_memory == (device == "cuda")
    scalers = [trainer.precision.scaler for trainer in (built[0], built[-1])]
    assert scalers[0] is None or scalers[0].state_dict() == scalers[1].state_dict()
    for one, other in zip(built[0].model.learner.parameters(), built[-1].model.learner.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)  # atomic additions have no fixed order


@on_each_device
def test_memory_budget_and_feature_cache_change_nothing(device, run, built):  # noqa: F811
    own = ["TRAINER.COOP.PREC", "fp32", "OPTIM.MAX_EPOCH", 1, "USE_CUDA", device == "cuda"]
    plain = run("CoOp", "plain", options=own)
    cached = ["TEST.FEATURE_CACHE", True]
    for number, extra in enumerate((["TRAIN.TEXT_CHUNK", 7], cached, cached)):
        found = run("CoOp", f"other{number}", options=[*own, *extra])
        assert found["accuracy"] == pytest.approx(plain["accuracy"], abs=1)
    for trainer in built[1:]:
        torch.testing.assert_close(trainer.model.learner.ctx, built[0].model.learner.ctx, rtol=1e-3, atol=1e-4)


@on_each_device
@pytest.mark.parametrize("method", ["ALIGN", "MaPLe"])
def test_deterministic_steps_are_equal_to_the_last_bit(method, device, make, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            trainer = make(method, "fp32", "USE_CUDA", device == "cuda")
            take_steps(trainer, next(iter(trainer.test_loader)), 2)
            found.append([parameter.detach().cpu() for parameter in trainer.model.learner.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(*found):
        assert torch.equal(one, other)


def compiled(function, device):
    return torch.compile(function, backend="inductor" if device == "cuda" else "aot_eager")


@on_each_device
def test_compiled_towers_are_equal(device, rng):
    torch.manual_seed(0)
    text = {"context_length": 12, "vocab_size": 64, "transformer_width": 32, "transformer_heads": 2}
    image = {"image_resolution": 32, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 16}
    model = clip.CLIP(embed_dim=16, **image, **text, transformer_layers=2).eval().requires_grad_(False).to(device)
    pictures = torch.randn(2, 3, 32, 32, generator=rng).to(device)
    ids = torch.randint(1, 60, (3, 12), generator=rng).to(device)
    ids[:, 7] = 63
    vectors = [torch.randn(2, width, generator=rng) for width in (64, 64, 32)]
    found = []
    for images, texts in (
        (model.encode_image, model.encode_text),
        (compiled(model.encode_image, device), compiled(model.encode_text, device)),
    ):
        leaves = [vector.to(device).requires_grad_() for vector in vectors]
        seen = images(pictures, clip.Prompts(tuple(leaves[:2]), None)).pooled
        read = texts(ids, clip.Prompts((leaves[2],), torch.tensor([1, 2], device=device))).pooled
        (seen.square().sum() + read.square().sum()).backward()
        found.append([seen, read, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@on_each_device
def test_compiled_transport_is_equal(device, rng):
    shapes = (2, 2, 8), (2, 2, 5, 8), (3, 2, 8), (3, 2, 4, 8)
    values = [torch.nn.functional.normalize(torch.randn(shape, generator=rng), dim=-1) for shape in shapes]
    mask = torch.ones(3, 2, 4, dtype=torch.bool, device=device)
    found = []
    for score in (align_logits, compiled(align_logits, device)):
        leaves = [value.to(device).requires_grad_() for value in values]
        scores = score(*leaves, mask, 10.0, fast=True).logits
        scores.square().sum().backward()
        found.append([scores, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("backend", "device", "processes"),
    [("gloo", "cpu", 2), *(pytest.param(b, "cuda", n, marks=pytest.mark.gpu) for b, n in [("nccl", 1), ("gloo", 2)])],
)
def test_gradients_are_averaged_over_processes(backend, device, processes):
    """NCCL refuses two processes on one device; gloo takes tensors of a GPU as well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    each = [
        context.Process(target=average, args=(backend, device, k, processes, place, answers)) for k in range(processes)
    ]
    for process in each:
        process.start()
    found = [answers.get(timeout=200) for _ in each]
    for process in each:
        process.join()
    expected = [
        sum(k + i for k in range(processes)) / processes for i in range(3)
    ]  # process k has the input k + (0, 1, 2)
    assert found == [(expected, processes)] * processes
