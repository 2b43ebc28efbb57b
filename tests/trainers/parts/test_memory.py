"""Towers in chunks give the logits and gradients of the whole, and a budget of memory is kept."""

import pytest
import torch
from plain_towers import assert_same_gradients, trainer_of

from clip.chunks import Chunks
from dassl.config.checks import check_values
from dassl.config.defaults import default_config
from dassl.engine import TRAINER_REGISTRY
from trainers.parts.memory import GIB, MemoryPlan

LABELS = torch.tensor([0, 3, 1])
OPTIONS = {
    "ALIGN": {"PROMPT_DEPTH": 3, "VISION_PROMPT_NUMBER": 2, "TEXT_PROMPT_NUMBER": 2},
    "MaPLe": {"PROMPT_DEPTH": 3},
    "CoCoOp": {"N_CTX": 3},
    "PromptSRC": {"PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 3},
    "CoOp": {"N_CTX": 3},
    "CoOpLAMM": {"N_CTX": 3},
    "PLOT": {"N_CTX": 3, "N": 2},
    "TCP": {"N_CTX": 3, "BLOCK": 2},
}


@pytest.fixture(autouse=True)
def everything_shared(monkeypatch):
    monkeypatch.setattr("clip.text_plan.GROUP_COST", {True: 0, False: 0})


def built(method, model, names):
    torch.manual_seed(3)
    return trainer_of(TRAINER_REGISTRY.get(method), model, names, **OPTIONS[method])


@pytest.mark.parametrize("method", OPTIONS)
def test_chunks_change_neither_logits_nor_gradients(tiny_clip, names, images, method):
    whole, parts = (built(method, tiny_clip, names) for _ in range(2))
    parts.model.learner.load_state_dict(whole.model.learner.state_dict())
    parts.model.memory = MemoryPlan(text_rows=3, image_rows=2)
    batch = {"img": images, "label": LABELS}
    losses = [sum(trainer.losses(batch).values()) for trainer in (whole, parts)]
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=1e-5)
    own = torch.autograd.grad(losses[1], list(parts.model.learner.parameters()))
    expected = torch.autograd.grad(losses[0], list(whole.model.learner.parameters()))
    for (name, _), a, b in zip(whole.model.learner.named_parameters(), own, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()), msg=name)
    with torch.no_grad():
        torch.testing.assert_close(parts.model(images).logits, whole.model(images).logits, rtol=1e-5, atol=1e-4)


def test_chunks_are_really_taken(tiny_clip, names, images, monkeypatch):
    """The towers see no more rows than the plan says."""
    trainer, seen = built("ALIGN", tiny_clip, names), []
    monkeypatch.setattr("clip.text_plan.GROUP_COST", {True: 1000, False: 1000})  # one group
    trainer.model.memory = MemoryPlan(text_rows=3, image_rows=2)
    forward = type(tiny_clip.transformer).forward
    monkeypatch.setattr(
        type(tiny_clip.transformer),
        "forward",
        lambda self, x, *a, **k: seen.append(len(x)) or forward(self, x, *a, **k),
    )
    trainer.model(images).logits.sum().backward()
    assert sorted(seen) == [1, *[2] * 5, *[3] * 6]  # 6 images twice but the last 2; 10 sentences twice but the last


def saved_bytes(trainer, images):
    """Bytes that the forward pass keeps, without weights."""
    weights = {value.untyped_storage().data_ptr() for value in trainer.model.clip.state_dict().values()}
    found, alive = {}, []

    def pack(value):
        storage = value.untyped_storage()
        found[storage.data_ptr()] = 0 if storage.data_ptr() in weights else storage.nbytes()
        alive.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = trainer.model(images)
    return sum(found.values()), output


@pytest.mark.parametrize("method", ["ALIGN", "CoCoOp", "PromptSRC"])
def test_a_budget_bounds_what_is_kept(tiny_clip, images, method, monkeypatch):
    """Activations beyond it are computed again; a large budget changes nothing."""
    monkeypatch.setattr("trainers.parts.memory.RUNTIME", {True: 0, False: 0})
    trainer = built(method, tiny_clip, [f"{a} {b}" for a in ("cat", "dog", "bird") for b in "abcdefgh"])
    learner, weights = trainer.model.learner, sum(p.numel() * 4 for p in trainer.model.parameters())
    trainer.model.learner.chunk_rows = 1000
    whole, output = saved_bytes(trainer, images)
    expected = output.logits
    room = 0.5 * whole
    trainer.model.memory = MemoryPlan((weights + 2 * sum(p.numel() * 4 for p in learner.parameters()) + room) / GIB)
    kept, output = saved_bytes(trainer, images)
    assert kept < 1.1 * room
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-4)
    assert_same_gradients(output.logits.pow(2).sum(), expected.pow(2).sum(), learner)
    trainer.model.memory = MemoryPlan(1)
    assert saved_bytes(trainer, images)[0] == pytest.approx(whole, rel=0.01)


def test_what_fits_is_kept():
    """Chunks are held, from the last, while there is room for the largest one to be computed again."""
    plan = MemoryPlan(1)
    assert plan._fit([10, 10, 4], [5, 5, 2], 2.0, 48) is None
    assert plan._fit([10, 10, 4], [5, 5, 2], 2.0, 47) == Chunks(5, 2)
    assert plan._fit([4, 10, 10], [2, 5, 5], 1.0, 23) == Chunks(5, 5)
    assert plan._fit([6, 6, 6, 6], [3, 3, 3, 3], 1.0, 18) == Chunks(3, 6)


def test_a_budget_that_is_too_small_is_said(caplog):
    plan = MemoryPlan(0.001)
    assert plan._fit([10, 10], [5, 5], 2.0, -4) == Chunks(5, 5)
    assert plan._fit([10, 10], [5, 5], 2.0, -4) == Chunks(5, 5)
    assert caplog.text.count("TRAIN.MEMORY_BUDGET 0.001 GiB is too small") == 1


def test_a_budget_knows_of_image_chunks_by_hand(tiny_clip, names, images):
    """The text gets what the images leave, whoever has chosen their chunks."""
    trainer, taken = built("ALIGN", tiny_clip, names), []
    for rows in (1, 2, 100):
        trainer.model.memory = plan = MemoryPlan(1, image_rows=rows)
        trainer.model.encode_image(images)
        taken.append(plan.images)
    count = len(images) * trainer.model.learner.vision_modes
    assert taken[0] > 0
    assert taken == pytest.approx([taken[0], 2 * taken[0], count / 2 * taken[0]])


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf")])
def test_budgets_that_are_no_number_of_bytes_are_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}, expected a finite number of at least 0"):
        MemoryPlan(budget)


@pytest.mark.parametrize("key", ["MEMORY_BUDGET", "TEXT_CHUNK", "IMAGE_CHUNK"])
def test_negative_options_are_refused(key):
    cfg = default_config()
    cfg.TRAIN[key] = -1.0 if key == "MEMORY_BUDGET" else -1
    with pytest.raises(ValueError, match=f"TRAIN.{key}"):
        check_values(cfg)
