"""Zero-shot CLIP with one template or several, against a loop over classes and sentences."""

from types import SimpleNamespace

import pytest
import torch
from yacs.config import CfgNode

import clip
from trainers.adapters.zsclip import ZeroshotCLIP, ZeroshotCLIP2
from trainers.base import PromptedCLIP, cosine_score, ensemble_features
from trainers.parts.prompts import FixedText, TemplateText
from trainers.parts.templates import IMAGENET_TEMPLATES, IMAGENET_TEMPLATES_SELECT, template_set

PETS = "a photo of a {}, a type of pet."


def trainer_of(cls, kind="", dataset="OxfordPets"):
    trainer = object.__new__(cls)
    trainer.cfg = CfgNode({"TRAINER": cls.defaults(), "DATASET": {"NAME": dataset}, "INPUT": {"TEMPLATE": ""}})
    trainer.cfg.TRAINER.ZEROSHOT.TEMPLATES = kind
    trainer.dm = SimpleNamespace(dataset=None)
    trainer.backbone_hash = "0"
    return trainer


def by_sentences(model, name, templates):
    """Classifier row of one class: unit features, their mean, scaled to unit length."""
    total = torch.zeros(model.text_projection.shape[1])
    for template in templates:
        ids = clip.tokenize([template.replace("{}", name.replace("_", " "))], vocab_size=model.vocab_size)
        feature = model.encode_text(ids).pooled[0]
        total = total + feature / feature.norm()
    mean = total / len(templates)
    return mean / mean.norm()


@pytest.mark.parametrize("kind", ["dataset", "select7", "released", "imagenet80"])
def test_logits_are_those_of_the_mean_of_unit_features(tiny_clip, names, kind, rng):
    names = names[:3]
    trainer = trainer_of(ZeroshotCLIP, kind)
    learner = trainer.build_learner(tiny_clip, names)
    images = torch.randn(2, 3, 32, 32, generator=rng)
    with torch.no_grad():
        found = PromptedCLIP(tiny_clip, learner, cosine_score)(images).logits
        rows = torch.stack([by_sentences(tiny_clip, name, trainer.templates) for name in names])
        image = tiny_clip.encode_image(images).pooled
        expected = tiny_clip.logit_scale.exp() * (image / image.norm(dim=1, keepdim=True)) @ rows.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not list(learner.state_dict())
    assert isinstance(learner, TemplateText if kind == "dataset" else FixedText)


def test_each_feature_counts_the_same_whatever_its_length(tiny_clip):
    """The mean of normalised features is not the normalised mean: a long feature must not win."""
    templates = ["a photo of a {}.", "{} texture."]
    found = ensemble_features(tiny_clip, ["cat"], templates)[0]
    torch.testing.assert_close(found, by_sentences(tiny_clip, "cat", templates), rtol=1e-4, atol=1e-5)
    assert found.norm().item() == pytest.approx(1)


def test_sets_of_templates():
    assert len(IMAGENET_TEMPLATES) == len(set(IMAGENET_TEMPLATES)) == 80
    assert len(IMAGENET_TEMPLATES_SELECT) == 7
    assert set(IMAGENET_TEMPLATES_SELECT) < set(IMAGENET_TEMPLATES)
    assert template_set("dataset", "OxfordPets", PETS) == (PETS,)
    assert template_set("imagenet80", "OxfordPets", PETS) == IMAGENET_TEMPLATES
    assert template_set("select7", "OxfordPets", PETS) == IMAGENET_TEMPLATES_SELECT
    assert template_set("released", "OxfordPets", PETS) == (*IMAGENET_TEMPLATES_SELECT, PETS)
    assert template_set("released", "ImageNet", "a photo of a {}.") == IMAGENET_TEMPLATES_SELECT
    assert template_set("imagenet7", "ImageNet", "a photo of a {}.") == IMAGENET_TEMPLATES_SELECT
    assert template_set("imagenet7", "OxfordPets", PETS) == (PETS,)
    assert len(template_set("released", "ImageNetV2", "a photo of a {}.")) == 8
    with pytest.raises(ValueError, match=r"'all'.*dataset, imagenet80, select7, released"):
        template_set("all", "OxfordPets", PETS)


def test_the_second_trainer_is_the_released_ensemble():
    assert trainer_of(ZeroshotCLIP).templates == (PETS,)
    assert trainer_of(ZeroshotCLIP2).templates == (*IMAGENET_TEMPLATES_SELECT, PETS)
    assert trainer_of(ZeroshotCLIP2).templates == trainer_of(ZeroshotCLIP2).templates  # nothing grows with use
    assert len(trainer_of(ZeroshotCLIP2, dataset="ImageNet").templates) == 7
    assert trainer_of(ZeroshotCLIP2, "imagenet80").templates == IMAGENET_TEMPLATES


def test_results_of_other_templates_have_another_fingerprint():
    marks = {kind: trainer_of(ZeroshotCLIP, kind).fingerprint_extra()["template"] for kind in ("dataset", "select7")}
    assert marks["dataset"] == PETS
    assert marks["select7"] == " | ".join(IMAGENET_TEMPLATES_SELECT)


def test_an_unknown_set_is_refused():
    trainer = trainer_of(ZeroshotCLIP, "eighty")
    with pytest.raises(ValueError, match=r"TRAINER.ZEROSHOT.TEMPLATES is 'eighty'.*imagenet80"):
        trainer.check_cfg(trainer.cfg)


def test_sentences_about_the_classes_alone_and_beside_the_templates(tiny_clip):
    names, own = ["cat", "yin_yang"], [["a small animal.", "it purrs."], ["a black and white circle."]]
    texts = {"descriptions": own, "both": [[PETS.format("cat"), *own[0]], [PETS.format("yin yang"), *own[1]]]}
    for kind, sentences in texts.items():
        trainer = trainer_of(ZeroshotCLIP, kind)
        trainer.descriptions = own
        found = trainer.build_learner(tiny_clip, names).features
        rows = [by_sentences(tiny_clip, "{}", some) for some in sentences]
        torch.testing.assert_close(found, torch.stack(rows), rtol=1e-4, atol=1e-5)
        mark = trainer.fingerprint_extra()["template"]
        assert "descriptions " in mark
        assert mark.startswith(PETS) == (kind == "both")
