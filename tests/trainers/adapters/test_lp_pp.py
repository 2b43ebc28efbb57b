"""LP++: the fit step by step with loops over images and classes, its choice of a step, and the options."""

import pytest
import torch
from support_sets import class_feature, support_trainer, unit

from tests.tolerance import assert_close
from trainers.adapters.lp_pp import LPPP


@pytest.fixture
def build(tiny_clip, names, monkeypatch):
    def make(**options):
        return support_trainer(LPPP, tiny_clip, names, monkeypatch, **options)

    return make


def plain_fit(model, trainer, names, steps, every, summed=True, bias=True, factor=250.0):
    """Weight, bias and alpha after each step; gradients of cross-entropy written out, in double precision."""
    images, labels = trainer.sets["train"][0]
    f = [unit(model.encode_image(image[None]).pooled[0]).double() for image in images]
    t = [class_feature(model, name).double() for name in names]
    count, classes, shots = len(f), len(t), len(f) // len(t)
    gram = sum(torch.outer(x, x) for x in f)
    step = 4 * count / float(torch.linalg.eigvalsh(gram).max())
    alpha_step = count / (4 * max(sum(float(x @ k) ** 2 for x in f) for k in t))
    w = [sum(x for x, y in zip(f, labels.tolist()) if y == k) for k in range(classes)]
    mean = sum(float(x @ t[y]) for x, y in zip(f, labels.tolist())) / shots / classes
    b, a = [0.0] * classes, [factor * mean] * classes
    w_speed, b_speed, collected = [torch.zeros_like(x) for x in w], [0.0] * classes, [0.0] * classes
    found = []
    for number in range(steps):
        w_grad, b_grad, a_grad = [torch.zeros_like(x) for x in w], [0.0] * classes, [0.0] * classes
        for x, y in zip(f, labels.tolist()):
            logits = torch.stack([x @ w[k] + b[k] + a[k] * (x @ t[k]) for k in range(classes)])
            share = logits.exp() / logits.exp().sum()
            for k in range(classes):
                error = (float(share[k]) - (k == y)) / count
                w_grad[k] += error * x
                b_grad[k] += error
                a_grad[k] += error * float(x @ t[k])
        collected = [(one if summed else 0) + other for one, other in zip(collected, a_grad)]
        for k in range(classes):
            w_speed[k] = 0.9 * w_speed[k] + w_grad[k]
            b_speed[k] = 0.9 * b_speed[k] + b_grad[k] * bias
            w[k] = w[k] - step * w_speed[k]
            b[k] = b[k] - step * b_speed[k]
            if (number + 1) % every == 0:
                a[k] = a[k] - alpha_step * collected[k]
        found.append((torch.stack(w).float(), torch.tensor(b), torch.tensor(a)))
    return found


CASES = {
    "released": ({}, {}),
    "gradient of the last step": ({"ALPHA_GRADIENT": "current"}, {"summed": False}),
    "paper's logits": ({"BIAS": False, "INIT_ALPHA": 100.0}, {"bias": False, "factor": 100.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_fit(build, tiny_clip, names, case):
    options, plain = CASES[case]
    trainer = build(EPOCHS=8, ALPHA_EVERY=3, SELECT="last", **options)
    figures = trainer.fit()
    learner = trainer.model.learner
    assert trainer.loader_calls == [(15, "augment", False, 1)]
    expected = plain_fit(tiny_clip, trainer, names, 8, 3, **plain)[-1]
    for value, other in zip((learner.weight, learner.bias, learner.alpha), expected):
        assert_close(value.detach(), other, 1e-4)
    assert figures == {"alpha": pytest.approx(float(expected[2].mean()), rel=1e-4)}
    wrong = plain_fit(tiny_clip, trainer, names, 8, 3, **{**plain, "summed": not plain.get("summed", True)})[-1]
    assert not torch.allclose(learner.alpha, wrong[2], rtol=1e-3)  # the kind of gradient matters


def test_logits(build, tiny_clip, names, images):
    trainer = build(EPOCHS=2)
    trainer.fit()
    learner = trainer.model.learner.requires_grad_(False)
    found = trainer.model(images).logits.detach()
    for row, image in zip(found, images):
        f = unit(tiny_clip.encode_image(image[None]).pooled[0])
        for k, name in enumerate(names):
            expected = f @ (learner.weight[k] + learner.alpha[k] * class_feature(tiny_clip, name)) + learner.bias[k]
            assert float(row[k]) == pytest.approx(float(expected), rel=1e-4, abs=1e-4 * float(found.abs().max()))


def test_the_later_of_the_best_steps_on_validation_images_is_kept(build, tiny_clip, names):
    trainer = build(EPOCHS=12, ALPHA_EVERY=2)
    figures = trainer.fit()
    images, labels = trainer.sets["val"]
    f = unit(tiny_clip.encode_image(images).pooled)
    text = torch.stack([class_feature(tiny_clip, name) for name in names])
    steps = plain_fit(tiny_clip, trainer, names, 12, 2)
    hits = [int(((f @ (w + a[:, None] * text).T + b).argmax(1) == labels).sum()) for w, b, a in steps]
    last = max(k for k, hit in enumerate(hits) if hit == max(hits))
    assert figures["val_accuracy"] == pytest.approx(100 * max(hits) / len(labels))
    assert_close(trainer.model.learner.weight.detach(), steps[last][0], 1e-4)
    assert trainer.chosen_on() == "val"


def test_without_validation_images_the_last_step_is_kept(build, tiny_clip, names):
    trainer = build(EPOCHS=4, val=False)
    assert "val_accuracy" not in trainer.fit()
    assert trainer.chosen_on() is None
    assert_close(trainer.model.learner.weight.detach(), plain_fit(tiny_clip, trainer, names, 4, 10)[-1][0], 1e-4)


def test_a_class_without_images_is_refused(build):
    trainer = build()
    trainer.sets["train"][0][1].fill_(2)
    with pytest.raises(ValueError, match="4 classes have no training image, such as 'cat': LPPP needs some of every"):
        trainer.fit()


def test_what_is_learned_and_bad_options(build):
    learner = build().model.learner
    shapes = {name: tuple(p.shape) for name, p in learner.named_parameters()}
    assert shapes == {"weight": (5, 32), "bias": (5,), "alpha": (5,)}
    assert learner.class_bound
    with pytest.raises(
        ValueError, match=r"(?s)EPOCHS is 0.*ALPHA_GRADIENT is 'sum', expected one of released, current"
    ):
        build(EPOCHS=0, ALPHA_GRADIENT="sum")
