"""Sentences about classes: reading them, what is wrong with a file, and their ensemble."""

import json
from types import SimpleNamespace

import pytest
import torch
from plain_towers import text_feature, trainer_of, unit

from trainers.adapters.zsclip import ZeroshotCLIP
from trainers.parts.descriptions import read_descriptions

NAMES = ["cat", "golden_retriever", "Boeing 747-400"]
FIRST = {
    "Cat": ["a small animal."],
    "golden retriever": ["a large dog with golden hair.", "a friendly dog."],
    "boeing_747-400": ["a plane."],
}
SECOND = {name: [f"something called {name}."] for name in NAMES}


@pytest.fixture
def write(tmp_path):
    def make(content, name="a.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / name)

    return make


def test_several_sources_in_the_order_of_the_classes(write):
    paths = [write(FIRST), write(SECOND, "b.json")]
    found = read_descriptions(paths, NAMES)
    assert found == [
        ["a small animal.", "something called cat."],
        ["a large dog with golden hair.", "a friendly dog.", "something called golden_retriever."],
        ["a plane.", "something called Boeing 747-400."],
    ]
    assert read_descriptions(paths[:1], NAMES[1:2], subset=True) == [FIRST["golden retriever"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**FIRST, "dog": ["x"]}, "describes what is no class of the data: dog"),
        ({"cat": ["x"]}, "has no sentences about golden_retriever, Boeing 747-400"),
        ({**FIRST, "Cat": []}, "has no sentences about cat"),
        ({**FIRST, "Cat": "x"}, "holds no descriptions: expected {class name"),
        ({**FIRST, "Cat": [" "]}, "holds no descriptions"),
        ([1], "holds no descriptions"),
        ("{", "is not a JSON file"),
    ],
)
def test_files_that_do_not_fit(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_descriptions([write(content)], NAMES)


def test_the_ensemble_of_zero_shot_clip(tiny_clip, images, write, monkeypatch):
    monkeypatch.setattr(ZeroshotCLIP, "descriptions", read_descriptions([write(FIRST)], NAMES))
    trainer = trainer_of(ZeroshotCLIP, tiny_clip, NAMES, TEMPLATES="descriptions")
    for row, sentences in zip(trainer.model.learner.features, FIRST.values(), strict=True):
        mean = sum(unit(text_feature(tiny_clip, sentence, [])) for sentence in sentences) / len(sentences)
        torch.testing.assert_close(row, unit(mean), rtol=1e-4, atol=1e-5)
    assert trainer.model(images).logits.shape == (3, 3)


def test_the_trainer_reads_the_files_of_the_config(tiny_clip, write):
    trainer = trainer_of(ZeroshotCLIP, tiny_clip, NAMES)
    trainer.cfg.defrost()
    trainer.cfg.DATASET.DESCRIPTIONS, trainer.cfg.DATASET.SUBSAMPLE_CLASSES = (), "base"
    trainer.dm.dataset = SimpleNamespace(classnames=NAMES[:2])
    with pytest.raises(ValueError, match=r"reads sentences about the classes: set DATASET\.DESCRIPTIONS"):
        trainer.descriptions  # noqa: B018
    trainer.cfg.DATASET.DESCRIPTIONS = (write(FIRST),)
    assert trainer.descriptions == [FIRST["Cat"], FIRST["golden retriever"]]
