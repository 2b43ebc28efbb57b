"""CoPrompt against plain forwards of one image and one sentence at a time, and its two teachers."""

import copy
import json

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
    unit,
)

from tests.tolerance import assert_close
from trainers.coprompt import CoPrompt, sentence_features
from trainers.parts.descriptions import read_descriptions

LABELS = torch.tensor([0, 3, 1])


def build(model, names, sentences=None, **options):
    torch.manual_seed(1)

    class Method(CoPrompt):
        descriptions = sentences

    Method.defaults = staticmethod(CoPrompt.defaults)
    if sentences:

        def build_learner(self, model, classnames):
            self.cfg.DATASET.DESCRIPTIONS = ["file"]
            return CoPrompt.build_learner(self, model, classnames)

        Method.build_learner = build_learner
    return trainer_of(Method, copy.deepcopy(model), names, **{"PROMPT_DEPTH": 3, **options})


def adapted(adapter, feature, ratio):
    hidden = torch.stack([(row @ feature).clamp(min=0) for row in adapter.down.weight])
    return ratio * torch.stack([(row @ hidden).clamp(min=0) for row in adapter.up.weight]) + (1 - ratio) * feature


def distance(found, known):
    return 1 - sum(unit(a) @ unit(b) for a, b in zip(found, known)) / len(found)


def reference(model, learner, images, names, rounded=lambda x: x):
    texts = [learner.ctx[0], *(layer[0] for layer in learner.deep)]
    visual = [rounded(text @ project.weight.T + project.bias) for text, project in zip(texts, learner.projections)]
    texts[1:] = map(rounded, texts[1:])
    words = [text_feature(model, f"a a of a {name.replace('_', ' ')}.", texts) for name in names]
    seen = [image_feature(model, image, visual) for image in images]
    return (
        [adapted(learner.image_adapter, feature, 0.3) for feature in seen],
        [adapted(learner.text_adapter, feature, 0.4) for feature in words],
    )


@pytest.mark.parametrize("views", [1, 2])
def test_logits_losses_and_gradients(tiny_clip, names, images, views, rng):
    trainer = build(tiny_clip, names, IMAGE_RATIO=0.3, TEXT_RATIO=0.4, W=3.0)
    seen, words = reference(tiny_clip, trainer.model.learner, images, names)
    logits = logits_of(tiny_clip, seen, words)
    assert_close(trainer.model(images).logits, logits, 2e-5)
    other = torch.randn(images.shape, generator=rng)
    teacher = other if views == 2 else images
    sentences = [text_feature(tiny_clip, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    expected = {
        "ce": cross_entropy(logits, LABELS),
        "text": 3 * distance(words, sentences),
        "image": 3 * distance(seen, [image_feature(tiny_clip, image, []) for image in teacher]),
    }
    terms = trainer.losses({"img": [images, other] if views == 2 else images, "label": LABELS})
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=2e-5, atol=3e-5)  # 1 - cosine cancels
    assert_same_gradients(sum(terms.values()), sum(expected.values()), trainer.model.learner, rtol=3e-4)


def test_the_released_distance_and_rounding(tiny_clip, names, images):
    options = {"IMAGE_RATIO": 0.3, "TEXT_RATIO": 0.4, "W": 3.0, "DISTANCE": "mse", "HALF_PROMPTS": True}
    trainer = build(tiny_clip, names, **options)
    learner = trainer.model.learner
    seen, words = reference(tiny_clip, learner, images, names, lambda x: x.half().float())
    assert_close(trainer.model(images).logits, logits_of(tiny_clip, seen, words), 2e-5)
    exact = logits_of(tiny_clip, *reference(tiny_clip, learner, images, names))
    with pytest.raises(AssertionError):
        assert_close(trainer.model(images).logits, exact, 2e-5)
    terms = trainer.losses({"img": images, "label": LABELS})
    known = [text_feature(tiny_clip, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    for term, found, others in (
        ("text", words, known),
        ("image", seen, [image_feature(tiny_clip, image, []) for image in images]),
    ):
        squares = [(unit(a) - unit(b)).square() for a, b in zip(found, others)]
        assert_close(terms[term], 3 * torch.stack(squares).mean(), 1e-4)


def test_every_step_draws_a_sentence(tiny_clip, names, images):
    sentences = [[f"one {name}", f"two of {name}", "three"][: 1 + k % 3] for k, name in enumerate(names)]
    trainer = build(tiny_clip, names, sentences)
    features = sentence_features(tiny_clip, sentences)
    assert features.shape == (3, 5, 32)
    for c, own in enumerate(sentences):
        for k in range(3):
            expected = unit(text_feature(tiny_clip, own[k % len(own)], []))
            assert_close(features[k, c], expected, 2e-5)
    words = trainer.model.learner.text_adapter(trainer.model(images).text.pooled)
    possible = [float(distance(words, features[k])) for k in range(3)]
    found = {round(float(trainer.losses({"img": images, "label": LABELS})["text"]), 4) for _ in range(12)}
    assert found == {round(value, 4) for value in possible}


def test_bad_input(tiny_clip, names, tmp_path):
    path = tmp_path / "said.json"
    path.write_text(json.dumps({name: ["x"] for name in names[1:]}))
    with pytest.raises(ValueError, match="has no sentences about cat"):
        read_descriptions([str(path)], names)
    path.write_text(json.dumps({name: ["x"] for name in [*names, "zebra"]}))
    with pytest.raises(ValueError, match="describes what is no class of the data: zebra"):
        read_descriptions([str(path)], names)
    with pytest.raises(ValueError, match="PROMPT_DEPTH is 5, but the shallower tower has 4 blocks"):
        build(tiny_clip, names, PROMPT_DEPTH=5)
    with pytest.raises(ValueError, match="REDUCTION is 33, expected 1 to 32"):
        build(tiny_clip, names, REDUCTION=33)
