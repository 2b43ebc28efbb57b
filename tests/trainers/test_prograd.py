"""ProGrad's losses, gradients and steps against plain forwards of one sentence at a time."""

from types import SimpleNamespace

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
)

import clip
from clip.words import Words
from dassl.engine.precision import WHOLE, Precision
from trainers.parts.prompts import word_tokens
from trainers.parts.templates import template_for
from trainers.prograd import TEACHER_TEMPLATES, ProGrad, project

VOCAB = 2048
LABELS = torch.tensor([0, 3, 1])
TEMPLATE = "a drawing of a {}, in ink."


def build(model, names, **options):
    torch.manual_seed(1)
    return trainer_of(ProGrad, model, names, **{"template": TEMPLATE, "N_CTX": 3, **options})


def reference(model, learner, images, names, labels, temperature=1.0):
    """Logits, cross-entropy, and T^2 times the cross-entropy of softmax(y / T) under softmax(teacher / T)."""
    prefix = " ".join(["X"] * len(learner.ctx))
    plain = [name.replace("_", " ") for name in names]
    features = [image_feature(model, image, []) for image in images]
    logits = logits_of(model, features, [text_feature(model, f"{prefix} {n}.", [learner.ctx]) for n in plain])
    teacher = logits_of(model, features, [text_feature(model, TEMPLATE.format(n), []) for n in plain])
    total = torch.zeros(())
    for row, target in zip(logits / temperature, teacher / temperature):
        p = (target - target.exp().sum().log()).exp()
        total = total - (p * (row - row.exp().sum().log())).sum()
    return logits, cross_entropy(logits, labels), temperature**2 * total / len(images)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logits_losses_and_gradients(tiny_clip, names, images, temperature):
    trainer = build(tiny_clip, names, T=temperature)
    logits, ce, kl = reference(tiny_clip, trainer.model.learner, images, names, LABELS, temperature)
    torch.testing.assert_close(trainer.model(images).logits, logits, rtol=1e-4, atol=1e-4)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce"}  # the other is never minimised
    torch.testing.assert_close(terms["ce"], ce, rtol=1e-4, atol=0)
    torch.testing.assert_close(trainer.extra_metrics()["kl"], kl.detach(), rtol=1e-4, atol=0)
    assert_same_gradients(trainer.gradient_projection().loss, kl, trainer.model.learner)
    _, ce, _ = reference(tiny_clip, trainer.model.learner, images, names, LABELS, temperature)
    assert_same_gradients(trainer.losses({"img": images, "label": LABELS})["ce"], ce, trainer.model.learner)


@pytest.mark.parametrize("weight", [1.0, 0.8])
def test_steps(tiny_clip, names, images, weight):
    """Batches of one class: one of them contradicts the teacher, the others do not."""
    contradictions = []
    for label in range(5):
        labels = torch.tensor([label] * 3)
        trainer = build(tiny_clip, names, LAMBDA=weight)
        ctx = trainer.model.learner.ctx
        before = ctx.detach().clone()
        _, ce, kl = reference(tiny_clip, trainer.model.learner, images, names, labels)
        g, k = (torch.autograd.grad(loss, [ctx], retain_graph=True)[0].flatten() for loss in (ce, kl))
        unit = k / k.square().sum().sqrt()
        contradicts = float(g @ unit) < 0
        expected = g - weight * (g @ unit) * unit if contradicts else g
        terms = trainer.losses({"img": images, "label": labels})
        optimizer = torch.optim.SGD([ctx], lr=1.0)
        Precision("fp32", "cpu").step(terms["ce"], [optimizer], [ctx], projection=trainer.gradient_projection())
        step = (before - ctx.detach()).flatten()
        torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        if contradicts and weight == 1.0:
            assert abs(float(step @ unit)) < 1e-4 * float(step.norm())
        contradictions.append(contradicts)
    assert len(set(contradictions)) == 2


def test_the_training_step_projects_the_gradient(tiny_clip, names, images, monkeypatch):
    trainer, seen = build(tiny_clip, names), {}
    trainer.precision, trainer.batch_idx, trainer.num_batches = Precision("fp32", "cpu"), 0, 2
    trainer.sched, trainer.part_of_step = None, lambda: WHOLE

    def keep(self, loss, terms, metrics, **given):
        seen.update(loss=loss, **given)
        return {name: float(value.detach()) for name, value in {"loss": loss, **terms, **metrics}.items()}

    monkeypatch.setattr(ProGrad, "model_backward_and_update", keep)
    shown = trainer.forward_backward({"img": images, "label": LABELS})
    assert seen["loss"] is not seen["projection"].loss
    assert seen["projection"].loss is trainer.kl
    assert set(shown) == {"loss", "ce", "kl"}
    assert shown["loss"] == shown["ce"] != shown["kl"]


def test_projection():
    g, k = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 2.0])
    assert torch.equal(project(g, k, 1.0), torch.tensor([3.0, 0.0]))
    assert torch.equal(project(g, k, 0.5), torch.tensor([3.0, -2.0]))
    assert torch.equal(project(g, -k, 1.0), g)
    assert torch.equal(project(g, torch.zeros(2), 1.0), g)  # a guide of zero has no direction


def embeddings(model, tokens):
    return model.token_embedding.weight[torch.tensor(tokens)]


def test_words_start_the_last_vectors(tiny_clip, names):
    phrase = "a type of pet, a photo of a"
    tokens = word_tokens(tiny_clip, phrase)
    for specific in (False, True):
        options = {"dataset": "OxfordPets", "N_CTX": 20, "CTX_INIT": True, "CSC": specific, "noise": 0.0}
        ctx = build(tiny_clip, names, **options).model.learner.ctx.detach()
        assert ctx.shape == ((5, 20, 48) if specific else (20, 48))
        assert torch.equal(
            ctx[..., -len(tokens) :, :], embeddings(tiny_clip, tokens).expand_as(ctx[..., -len(tokens) :, :])
        )
        assert float(ctx[..., : -len(tokens), :].std()) == pytest.approx(0.02, rel=0.15)


def test_a_longer_phrase_gives_its_last_words(tiny_clip, names, caplog):
    learner = build(tiny_clip, names, template="a photo of a {}.", CTX_INIT=True, N_CTX=3, noise=0.0).model.learner
    assert torch.equal(learner.ctx.detach(), embeddings(tiny_clip, word_tokens(tiny_clip, "photo of a")))
    assert "last 3 of the 4 tokens" in caplog.text


def test_start_of_the_released_code(tiny_clip, names, images):
    """As many tokens as words after zeros; the tokens left over stay before the name."""
    phrase = "a type of pet, a photo of a"
    tokens, words = word_tokens(tiny_clip, phrase), 8
    options = {"dataset": "OxfordPets", "CTX_INIT": True, "RELEASED_INIT": True, "N_CTX": 12, "noise": 0.0}
    trainer = build(tiny_clip, names, **options)
    learner = trainer.model.learner
    assert torch.equal(learner.ctx[:4], torch.zeros(4, 48))
    assert torch.equal(learner.ctx[4:], embeddings(tiny_clip, tokens[:words]))
    x, (start, end) = word_tokens(tiny_clip, "X"), (VOCAB - 2, VOCAB - 1)
    for row, name in zip(learner.ids.tolist(), names):
        name = word_tokens(tiny_clip, name.replace("_", " ") + ".")
        expected = [start, *x * 12, *tokens[words:], *name, end]
        assert row == expected + [0] * (77 - len(expected))
    assert learner.slots.tolist() == [list(range(1, 13))] * 5
    trainer.losses({"img": images, "label": LABELS})["ce"].backward()
    assert float(learner.ctx.grad.abs().min(dim=1).values.min()) > 0


@pytest.mark.parametrize(
    ("dataset", "words", "left"),
    [
        ("OxfordPets", 8, "a"),
        ("OxfordFlowers", 8, "a"),
        ("FGVCAircraft", 8, "a"),
        ("Food101", 7, "of"),
        ("DescribableTextures", 3, ""),
        ("EuroSAT", 5, ""),
        ("UCF101", 6, ""),
        ("Caltech101", 4, ""),
    ],
)
def test_words_and_tokens_of_the_phrases(dataset, words, left):
    model = SimpleNamespace(words=Words(77, 49408))
    phrase = TEACHER_TEMPLATES.get(dataset, template_for(dataset)).removesuffix(" {}.")
    assert len(phrase.split()) == words
    assert word_tokens(model, phrase)[words:] == (word_tokens(model, left) if left else [])


def test_teacher_of_a_data_set(tiny_clip, names):
    teacher = build(tiny_clip, names, dataset="Food101").teacher.text
    for row, name in zip(teacher, names):
        expected = text_feature(tiny_clip, f"a type of food, a photo of {name.replace('_', ' ')}.", [])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_parameters_on_vit_b16(wide_clip):
    learner = build(wide_clip, ["cat", "dog"], N_CTX=16, noise=0.0).model.learner
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {"ctx": (16, 512)}
    assert sum(p.numel() for p in learner.parameters()) == 8_192
    assert float(learner.ctx.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("position", ["middle", "front"])
def test_place_of_the_name(tiny_clip, position):
    learner = build(tiny_clip, ["cat"], CLASS_TOKEN_POSITION=position, N_CTX=2).model.learner
    name = word_tokens(tiny_clip, "cat")
    x = word_tokens(tiny_clip, "X")
    middle = [*x, *name, *x] if position == "middle" else [*name, *x, *x]
    assert learner.ids[0, 1 : 1 + len(middle)].tolist() == middle
    assert clip.tokenize("cat", vocab_size=VOCAB)[0, 1] == name[0]


def test_bad_options_are_refused(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)CLASS_TOKEN_POSITION is 'side'.*T is 0\.0.*LAMBDA is -1\.0"):
        build(tiny_clip, names, CLASS_TOKEN_POSITION="side", T=0.0, LAMBDA=-1.0)
    with pytest.raises(ValueError, match=r"RELEASED_INIT is True, expected False unless CTX_INIT True"):
        build(tiny_clip, names, RELEASED_INIT=True)
    with pytest.raises(ValueError, match=r"TRAINER\.PROGRAD\.N_CTX is 3: raise N_CTX"):
        build(tiny_clip, names, template="a photo of a {}.", CTX_INIT=True, RELEASED_INIT=True, N_CTX=3)
    with pytest.raises(ValueError, match=r"CTX_INIT needs a template that ends with the name, got 'a drawing"):
        build(tiny_clip, names, CTX_INIT=True)
