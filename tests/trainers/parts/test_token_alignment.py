"""Unmasked token alignment against plain loops: the loss, what the student sees, its targets, two processes."""

import multiprocessing
import os
import socket

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip.eva import EvaVisionTransformer
from clip.model import VisionTransformer
from dassl.utils import distributed
from trainers.parts.masking import keep_patches
from trainers.parts.parameter_groups import decay_groups
from trainers.parts.token_alignment import Aligned, Student, TargetCache, Targets, alignment_losses

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["trainers.parts.token_alignment", "clip"])


def make_tower(kind: str):
    torch.manual_seed(0)
    if kind == "clip":
        return VisionTransformer(32, 8, 64, 2, 2, 24)
    tower = EvaVisionTransformer(32, 8, 64, 2, 2, 80, 24)
    nn.init.normal_(tower.head.weight)
    return tower


def make_targets(rows: int = 4, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    return Targets(torch.randn(rows, 24, generator=generator), torch.randn(rows, 16, 24, generator=generator))


def loop_loss(pooled, tokens, patches, targets, class_weight, token_weight):
    """The objective image by image, token by token."""
    total = 0.0
    for b in range(len(pooled)):
        terms, weights = [1 - F.cosine_similarity(pooled[b], targets.pooled[b], dim=0)], [class_weight]
        for k, patch in enumerate(patches[b].tolist()):
            terms.append(1 - F.cosine_similarity(tokens[b, k], targets.tokens[b, patch], dim=0))
            weights.append(token_weight)
        total = total + sum(w * t for w, t in zip(weights, terms)) / sum(weights)
    return total / len(pooled)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (5.0, 0.5)])
def test_loss_and_gradients_are_those_of_a_plain_loop(rng, weights):
    pooled, tokens = torch.randn(4, 24, generator=rng), torch.randn(4, 7, 24, generator=rng)
    pooled.requires_grad_(), tokens.requires_grad_()
    patches, targets = keep_patches("reversed", 4, (4, 4), 7, rng), make_targets()
    expected = loop_loss(pooled, tokens, patches, targets, *weights)
    terms = alignment_losses(Aligned(pooled, tokens, patches), targets, *weights)
    assert set(terms) == {name for name, weight in zip(("class", "tokens"), weights) if weight}
    found = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(found, expected)
    used = [value for value, weight in zip((pooled, tokens), weights) if weight]
    for one, other in zip(torch.autograd.grad(found, used), torch.autograd.grad(expected, used)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_the_student_sees_kept_patches_alone(kind, images):
    student, keep = Student(make_tower(kind), "unmasked"), torch.tensor([[1, 4, 6], [0, 2, 15], [3, 8, 9]])
    found = student(images, keep)
    assert torch.equal(found.patches, keep)
    visual = student.visual
    for b in range(3):
        one = visual.embed(images[b : b + 1])[:, [0, *(keep[b] + 1).tolist()]]
        expected = visual.encode(one, keep=keep[b])
        torch.testing.assert_close(found.pooled[b], expected.pooled[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.tokens[b], expected.tokens[0, 1:], rtol=1e-4, atol=1e-5)
    changed = images.clone()
    changed[0, :, :8, :8] += 1  # patch 0, which image 0 does not keep and image 1 does
    changed[1, :, :8, :8] += 1
    again = student(changed, keep)
    torch.testing.assert_close(again.tokens[0], found.tokens[0], rtol=0, atol=0)
    assert not torch.allclose(again.tokens[1], found.tokens[1])


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_mask_tokens_are_aligned_where_they_stand(kind, images):
    student, keep = Student(make_tower(kind), "mask_tokens"), torch.tensor([[1, 4, 6], [0, 2, 15], [3, 8, 9]])
    found = student(images, keep)
    visual, positions = student.visual, student.visual.positions.view(17, -1)
    for b in range(3):
        tokens = visual.embed(images[b : b + 1]).clone()
        hidden = [p for p in range(16) if p not in keep[b]]
        for p in hidden:
            tokens[0, 1 + p] = student.mask + positions[1 + p]
        expected = visual.encode(tokens)
        assert found.patches[b].tolist() == hidden
        torch.testing.assert_close(found.pooled[b], expected.pooled[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.tokens[b], expected.tokens[0, [1 + p for p in hidden]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_matrices_decay_but_positions_and_vectors_do_not(kind):
    student = Student(make_tower(kind), "mask_tokens")
    decayed, free = decay_groups(student, 0.05, without=(student.visual.positions,))
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in student.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    kept = {names[id(p)] for p in decayed["params"]}
    vectors = ("bias", "class_embedding", "cls_token", "mask", "positional_embedding", "pos_embed")
    assert not any("norm" in name or "ln_" in name or name.endswith(vectors) for name in kept)
    assert len(kept) == 2 + 2 * (7 if kind == "eva" else 4)  # patches, projection, matrices of two blocks


def test_cached_targets_are_computed_once(rng):
    images, calls = torch.randn(6, 3, 4, 4, generator=rng), []

    def compute(image):
        calls.append(len(image))
        return Targets(image.mean((2, 3)), image.flatten(2).transpose(1, 2))

    cache = TargetCache(6, compute)
    for index in ([0, 3], [3, 5], [5, 0], [1, 2, 4], [0, 1, 2, 3, 4, 5]):
        found, expected = cache(images[index], torch.tensor(index)), compute(images[index])
        calls.pop()
        assert torch.equal(found.pooled, expected.pooled)
        assert torch.equal(found.tokens, expected.tokens)
    assert calls == [2, 1, 3]


def test_targets_are_kept_beside_the_device():
    """Room for all images is never taken where the features come from."""

    class Remote(torch.Tensor):
        def new_empty(self, *size, **options):
            raise AssertionError(f"{size} on the device")

    def compute(image):
        return Targets(image.mean((2, 3)).as_subclass(Remote), image.flatten(2).as_subclass(Remote))

    assert TargetCache(9, compute)(torch.ones(2, 3, 4, 4), torch.tensor([4, 7])).pooled.shape == (2, 3)


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 3, 32, 32, generator=generator), keep_patches("reversed", 4, (4, 4), 6, generator)


def process(rank, port, folder):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    distributed.init_distributed(use_cuda=False)
    student = Student(make_tower("eva"), "unmasked")
    rows = slice(2 * rank, 2 * rank + 2)
    image, keep = (tensor[rows] for tensor in batch())
    targets = Targets(*(part[rows] for part in make_targets()))
    parallel = nn.parallel.DistributedDataParallel(student)
    aligned = parallel(image, keep)
    loss = sum(alignment_losses(aligned, targets, 1.0, 1.0).values())
    loss.backward()
    gradients = {name: p.grad for name, p in student.named_parameters()}
    torch.save({"loss": distributed.mean(loss.detach()), "gradients": gradients}, f"{folder}/{rank}.pt")
    distributed.shutdown_distributed()


@pytest.mark.slow
def test_two_processes_have_loss_and_gradients_of_the_whole_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [context.Process(target=process, args=(rank, port, str(tmp_path))) for rank in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    student = Student(make_tower("eva"), "unmasked")
    loss = sum(alignment_losses(student(*batch()), make_targets(), 1.0, 1.0).values())
    loss.backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach())
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-6)
