"""APE and APE-T against loops over images, keys, classes and features; the choice of features and the search."""

import itertools
import json
import logging
import math

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy
from support_sets import class_feature, support_trainer, unit

import clip
import train
from dassl.engine import command
from tests.short_options import short_run
from tests.tolerance import assert_close
from trainers.adapters.ape import APE
from trainers.parts.cache_model import SETTINGS, choose_features

SHOTS, VIEWS, Q = 3, 2, 11


@pytest.fixture
def build(tiny_clip, names, monkeypatch):
    def make(**options):
        options = {"AUGMENT_EPOCH": VIEWS, "FEATURES": Q, "SEARCH_STEP": (4, 3, 3), **options}
        made = support_trainer(APE, tiny_clip, names, monkeypatch, SHOTS, VIEWS, **options)
        made.by_steps = made.options.FINETUNE
        return made

    return make


def plain_keys(model, trainer):
    views = [images for images, _ in trainer.sets["train"]]
    return [unit(sum(model.encode_image(view[k][None]).pooled[0] for view in views)) for k in range(5 * SHOTS)]


def plain_choice(text, groups, weight):
    """Features by their criterion, best first; groups: vectors of each class that are compared with other classes'."""
    scores = []
    for d in range(len(text[0])):
        products = [
            float(a[d]) * float(b[d])
            for i, j in itertools.permutations(range(len(groups)), 2)
            for a in groups[i]
            for b in groups[j]
        ]
        values = [float(t[d]) for t in text]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        scores.append((1 - weight) * variance - weight * sum(products) / len(products))
    return sorted(range(len(scores)), key=lambda d: -scores[d])


@pytest.mark.parametrize(("weight", "images"), [(0.5, True), (0.9, True), (0.2, False)])
def test_choice_of_features(build, tiny_clip, names, weight, images):
    trainer = build(FINETUNE=not images, SIMILARITY=weight, SELECT="none")
    trainer.fit()
    keys, text = plain_keys(tiny_clip, trainer), [class_feature(tiny_clip, name) for name in names]
    labels = trainer.sets["train"][0][1].tolist()
    groups = [[t, *(key for key, y in zip(keys, labels) if y == k and images)] for k, t in enumerate(text)]
    expected = plain_choice(text, groups, weight)[:Q]
    assert sorted(trainer.model.learner.index.tolist()) == sorted(expected)
    assert sorted(plain_choice(text, groups, float(weight < 0.6))[:Q]) != sorted(expected)  # the weight matters


def test_classes_of_different_numbers_of_images(rng):
    text, keys = unit(torch.randn(3, 8, generator=rng)), unit(torch.randn(4, 8, generator=rng))
    labels = torch.tensor([2, 0, 2, 2])
    groups = [[text[k], *keys[labels == k]] for k in range(3)]
    found = choose_features(text, 3, 0.7, keys, labels)
    assert found.tolist() == plain_choice(text, groups, 0.7)[:3]


def plain_logits(model, trainer, names, images, alpha, beta, gamma):
    """APE's logits (B, C), entry by entry."""
    index = trainer.model.learner.index.tolist()
    labels, classes = trainer.sets["train"][0][1].tolist(), len(names)
    text, keys = [class_feature(model, name) for name in names], plain_keys(model, trainer)
    rows = []
    for image in images:
        f = unit(model.encode_image(image[None]).pooled[0])
        row = [model.logit_scale.exp() * (f @ t) for t in text]
        for key, y in zip(keys, labels):
            said = [unit(key[index]) @ unit(t[index]) for t in text]
            share = [math.exp(value) / sum(math.exp(one) for one in said) for value in said]
            divergence = sum((k == y) * math.log2(((k == y) + 1e-6) / (share[k] + 1e-6)) for k in range(classes))
            near = torch.exp(-beta * (1 - unit(f[index]) @ unit(key[index])))
            row[y] = row[y] + alpha * near * math.exp(gamma * divergence)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_logits_without_training(build, tiny_clip, names, images):
    trainer = build(INIT_ALPHA=1.7, INIT_BETA=2.5, INIT_GAMMA=0.3, SELECT="none")
    assert trainer.fit() == pytest.approx({"alpha": 1.7, "beta": 2.5, "gamma": 0.3})
    assert trainer.loader_calls == [(5 * SHOTS * VIEWS, "augment", False, 1)]
    found = trainer.model(images).logits
    assert_close(found, plain_logits(tiny_clip, trainer, names, images, 1.7, 2.5, 0.3))
    assert not torch.allclose(found, plain_logits(tiny_clip, trainer, names, images, 1.7, 2.5, 0.0), atol=1e-2)


def test_the_search_takes_the_first_best_triple(build, tiny_clip, names):
    trainer = build(SEARCH_SCALE=(9.0, 40.0, 2.0), SEARCH_STEP=(3, 2, 2))
    found = trainer.fit()
    images, labels = trainer.sets["val"]
    best = (-1,)
    for i, j, k in itertools.product(range(3), range(2), range(2)):
        beta, alpha, gamma = 0.1 + i * 8.9 / 3, 0.1 + j * 39.9 / 2, k * 2 / 2
        logits = plain_logits(tiny_clip, trainer, names, images, alpha, beta, gamma)
        hits = int((logits.argmax(1) == labels).sum())
        best = max(best, (hits, alpha, beta, gamma), key=lambda one: one[0])
    assert found["val_accuracy"] == pytest.approx(100 * best[0] / len(labels))
    assert [found[name] for name in ("alpha", "beta", "gamma")] == pytest.approx(list(best[1:]))
    assert trainer.chosen_on() == "val"


def test_logits_and_gradients_of_fine_tuning(build, tiny_clip, names, images):
    trainer = build(FINETUNE=True, INIT_ALPHA=1.7, INIT_BETA=2.5, SELECT="none")
    trainer.fit()
    learner, index = trainer.model.learner.train(), trainer.model.learner.index.tolist()
    shapes = {name: tuple(p.shape) for name, p in learner.named_parameters()}
    assert shapes == {"residual": (5, Q), "value_weight": (5 * SHOTS,)}
    torch.manual_seed(4)
    with torch.no_grad():
        learner.residual.normal_(std=0.1)
        learner.value_weight.add_(0.3 * torch.randn(5 * SHOTS))
    labels = trainer.sets["train"][0][1].tolist()

    def moved(vector, k):
        vector = vector.clone()
        for place, d in enumerate(index):
            vector[d] = vector[d] + learner.residual[k, place]
        return vector

    text = [moved(class_feature(tiny_clip, name), k) for k, name in enumerate(names)]
    keys = [moved(key, y) for key, y in zip(plain_keys(tiny_clip, trainer), labels)]
    rows = []
    for image in images:
        f = unit(tiny_clip.encode_image(image[None]).pooled[0])
        row = [tiny_clip.logit_scale.exp() * (f @ t) for t in text]
        for key, y, weight in zip(keys, labels, learner.value_weight):
            row[y] = row[y] + 1.7 * torch.exp(-2.5 * (1 - f @ key)) * weight
        rows.append(torch.stack(row))
    found, expected, truth = trainer.model(images).logits, torch.stack(rows), torch.tensor([0, 3, 1])
    assert_close(found, expected)
    trainer.parallel_model = trainer.model
    terms = trainer.losses({"img": images, "label": truth})
    assert list(terms) == ["ce"]
    assert_same_gradients(terms["ce"], cross_entropy(expected, truth), learner)


def test_fine_tuning_starts_from_the_cache_without_changes(build, images):
    trainer = build(FINETUNE=True, SELECT="none")
    trainer.fit()
    learner = trainer.model.learner
    f = unit(trainer.model.encode_image(images).pooled)
    expected = trainer.model.clip.logit_scale.exp() * f @ learner.features.T
    expected = expected + 1.0 * torch.exp(-(1 - f @ learner.keys.T)) @ torch.eye(5)[learner.labels]
    assert_close(trainer.model(images).logits, expected)


def test_released_settings(build):
    assert len(build(FEATURES=None).model.learner.index) == 25  # 800 of 1024 features, of 32
    assert len(build(FEATURES=None, FINETUNE=True).model.learner.index) == 28
    assert len(SETTINGS) == 10
    assert build(dataset="EuroSAT").released.ends == (30.0, 5.0, 1.5)


def test_without_validation_images_nothing_is_searched(build, caplog):
    trainer = build(val=False)
    with caplog.at_level(logging.WARNING):
        assert trainer.fit() == pytest.approx({"alpha": 1.0, "beta": 1.0, "gamma": 0.1})
    assert "no separate validation images" in caplog.text
    assert trainer.chosen_on() is None


def test_sentences_about_the_classes(build, tiny_clip, names, tmp_path):
    file = tmp_path / "cupl.json"
    file.write_text(json.dumps({name: [f"{name} has a tail.", "it is small."] for name in names}))
    trainer = build(TEMPLATES="both", others={"DESCRIPTIONS": [str(file)]})
    rows = []
    for name in names:
        texts = [f"a photo of a {name.replace('_', ' ')}.", f"{name} has a tail.", "it is small."]
        rows.append(unit(sum(class_feature(tiny_clip, text, "{}") for text in texts)))
    assert "golden_retriever" in names  # sentences are taken as they stand
    expected = torch.stack(rows)
    keep = [k for k, name in enumerate(names) if "_" not in name]
    assert_close(trainer.model.learner.features[keep], expected[keep])
    file.write_text(json.dumps({"cat": ["a cat."]}))
    with pytest.raises(ValueError, match="has no sentences about golden_retriever, Boeing 747-400, yin_yang, a"):
        build(TEMPLATES="both", others={"DESCRIPTIONS": [str(file)]})


def test_bad_options(build):
    with pytest.raises(ValueError, match=r"TRAINER.APE.FEATURES is 33, expected 1 to 32, the width of the features"):
        build(FEATURES=33)
    with pytest.raises(ValueError, match=r"(?s)AUGMENT_EPOCH is 0.*SIMILARITY is 1.5.*SEARCH_SCALE is \(1.0, 2.0\)"):
        build(AUGMENT_EPOCH=0, SIMILARITY=1.5, SEARCH_SCALE=(1.0, 2.0))


@pytest.mark.slow
def test_fine_tuning_goes_on_after_a_kill(tiny_clip, tmp_path, monkeypatch, few_emoji, pictures_root):
    """The cache is not filled again, and the weights are those of a run that was not stopped."""
    clip.save_model(tiny_clip, tmp_path / "tiny.safetensors")
    own = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "DATASET.NUM_SHOTS": 2,
        "INPUT.SIZE": "(32, 32)",
        "INPUT.TRANSFORMS": "('random_resized_crop', 'normalize')",
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 0.01,
        "OPTIM.MAX_EPOCH": 2,
        "OPTIM.LR_SCHEDULER": "batch_cosine",
        "TRAINER.APE.FINETUNE": True,
        "TRAINER.APE.AUGMENT_EPOCH": 2,
        "TRAINER.APE.SEARCH_STEP": "(3,3,3)",
    }
    pairs = short_run(tmp_path, tmp_path / "tiny.safetensors", **own)
    flags = ["--root", pictures_root, "--trainer", "APE", "--seed", "1", *pairs, "OUTPUT_DIR"]
    built, build = [], command.build_trainer
    monkeypatch.setattr(command, "build_trainer", lambda cfg: built.append(build(cfg)) or built[-1])
    whole = train.main([*flags, str(tmp_path / "whole")])
    assert whole["selection"] == "val"
    after = APE.after_epoch

    def stop(self):
        if self.epoch == 1:
            raise RuntimeError("killed")
        after(self)

    with monkeypatch.context() as patch:
        patch.setattr(APE, "after_epoch", stop)
        with pytest.raises(RuntimeError, match="killed"):
            train.main([*flags, str(tmp_path / "stopped")])
    monkeypatch.setattr(APE, "fit", lambda self: pytest.fail("filled again"))
    assert train.main([*flags, str(tmp_path / "stopped")])["accuracy"] == whole["accuracy"]
    for one, other in zip(built[0].model.learner.state_dict().values(), built[-1].model.learner.state_dict().values()):
        assert torch.equal(one, other)
    assert float(built[0].model.learner.residual.detach().abs().max()) > 0
