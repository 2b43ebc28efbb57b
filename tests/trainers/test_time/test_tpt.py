"""TPT: the step of one image against plain towers and AdamW written out; what is put back; the choice of views."""

import copy

import pytest
import torch
from plain_towers import image_feature, logits_of, text_feature, trainer_of

import clip
from tests.tolerance import assert_close
from trainers.parts.views import confident, entropy, entropy_of_mean
from trainers.test_time.tpt import TPT


def build(model, names, **options):
    trainer = trainer_of(TPT, copy.deepcopy(model), names, noise=0.0, **options)
    trainer.model.eval()
    return trainer


@pytest.fixture
def views(rng):
    """Twenty views of one image."""
    return torch.randn(1, 3, 32, 32, generator=rng) + 0.5 * torch.randn(20, 3, 32, 32, generator=rng)


def plain_entropies(logits):
    found = []
    for row in logits:
        chance = row.exp() / row.exp().sum()
        found.append(float(-sum(p * p.log() for p in chance)))
    return found


def plain_adapt(model, names, views, ctx, count, steps=1, rate=0.005, decay=0.01):
    """Logits of the first view after steps of AdamW on a context (n, d), and the views that were looked at."""

    def logits(context, images):
        texts = [text_feature(model, f"X X X X {name.replace('_', ' ')}.", [context]) for name in names]
        return logits_of(model, [image_feature(model, image, []) for image in images], texts)

    ctx, first, second, chosen = ctx.clone(), torch.zeros_like(ctx), torch.zeros_like(ctx), None
    for t in range(1, steps + 1):
        ctx = ctx.detach().requires_grad_()
        found = logits(ctx, views)
        if chosen is None:
            values = plain_entropies(found.detach())
            chosen = sorted(range(len(values)), key=lambda k: values[k])[:count]
        mean = sum(found[k].exp() / found[k].exp().sum() for k in chosen) / len(chosen)
        (gradient,) = torch.autograd.grad(-(mean * mean.log()).sum(), ctx)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        change = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        ctx = (ctx * (1 - rate * decay) - rate * change).detach()
    return logits(ctx, views[:1])[0].detach(), chosen


@pytest.mark.parametrize(("options", "count"), [({}, 2), ({"SELECT": 0.25, "STEPS": 3, "LR": 0.02}, 5)])
def test_adapted_logits(tiny_clip, names, views, options, count):
    trainer = build(tiny_clip, names, **options)
    start = trainer.model.learner.ctx.detach().clone()
    found = trainer.adapt(views)
    expected, _ = plain_adapt(tiny_clip, names, views, start, count, options.get("STEPS", 1), options.get("LR", 0.005))
    assert_close(found, expected, 1e-3)
    with torch.no_grad():
        plain = trainer.model(views[:1]).logits[0]
    assert float((found - plain).abs().max()) > 20 * float((found - expected).abs().max())  # the steps matter
    assert torch.equal(trainer.model.learner.ctx, start)
    assert trainer.model.learner.ctx.grad is None
    assert torch.equal(trainer.adapt(views), found)  # the next image starts afresh


def test_the_context_is_put_back_after_an_error(tiny_clip, names, views, monkeypatch):
    trainer = build(tiny_clip, names)
    start, calls = trainer.model.learner.ctx.detach().clone(), []
    encode = clip.CLIP.encode_text

    def fails(self, *args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return encode(self, *args, **more)

    monkeypatch.setattr(clip.CLIP, "encode_text", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.adapt(views)
    assert torch.equal(trainer.model.learner.ctx, start)


def test_images_are_encoded_once_and_without_a_graph(tiny_clip, names, views, monkeypatch):
    trainer, rows = build(tiny_clip, names, STEPS=2), []
    encode = type(trainer.model).encode_image

    def counted(self, image):
        out = encode(self, image)
        rows.append((len(image), out.pooled.requires_grad))
        return out

    monkeypatch.setattr(type(trainer.model), "encode_image", counted)
    trainer.adapt(views)
    assert rows == [(20, False)]


def test_entropies_and_the_choice_of_views(rng):
    logits = 3 * torch.randn(12, 7, generator=rng)
    expected = plain_entropies(logits)
    assert_close(entropy(logits), torch.tensor(expected))
    order = sorted(range(12), key=lambda k: expected[k])
    assert confident(logits, 0.3).tolist() == order[:3]
    assert confident(logits, 0.01).tolist() == order[:1]  # at least one
    mean = sum(row.exp() / row.exp().sum() for row in logits) / 12
    assert float(entropy_of_mean(logits)) == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-5)
    assert float(entropy_of_mean(logits)) > float(entropy(logits).mean())


def test_one_view_alone(tiny_clip, names, views):
    trainer = build(tiny_clip, names)
    expected, chosen = plain_adapt(tiny_clip, names, views[:1], trainer.model.learner.ctx.detach(), 1)
    assert chosen == [0]
    assert_close(trainer.adapt(views[:1]), expected, 1e-3)


def test_it_starts_from_the_words_and_belongs_to_no_classes(tiny_clip, names):
    learner = build(tiny_clip, names).model.learner
    ids = clip.tokenize(["a photo of a"], vocab_size=tiny_clip.vocab_size)[0, 1:5]
    assert_close(learner.ctx.detach(), tiny_clip.token_embedding.weight[ids])
    assert list(learner.state_dict()) == ["ctx"]  # as CoOp's
    assert not learner.class_bound


def test_bad_options(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)SELECT is 0.0.*STEPS is 0.*LR is 0"):
        build(tiny_clip, names, SELECT=0.0, STEPS=0, LR=0.0)
