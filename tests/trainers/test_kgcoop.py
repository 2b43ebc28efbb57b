"""KgCoOp's loss terms and gradients against plain forwards of one sentence at a time."""

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

from trainers.kgcoop import KgCoOp

LABELS = torch.tensor([0, 3, 1])
TEMPLATE = "a drawing of a {}, in ink."


def build(model, names, **options):
    torch.manual_seed(1)
    return trainer_of(KgCoOp, model, names, **{"template": TEMPLATE, "N_CTX": 3, "CTX_INIT": "", **options})


def sentences(template, names):
    return [template.format(name.replace("_", " ")) for name in names]


def reference(model, learner, images, names, template, weight):
    """Logits, cross-entropy, and weight * (1 - mean over classes of the cosine with the teacher)."""
    prefix = " ".join(["X"] * len(learner.ctx))
    texts = [text_feature(model, sentence, [learner.ctx]) for sentence in sentences(prefix + " {}.", names)]
    logits = logits_of(model, [image_feature(model, image, []) for image in images], texts)
    teachers = [text_feature(model, sentence, []) for sentence in sentences(template, names)]
    cosines = [(unit(text) * unit(teacher)).sum() for text, teacher in zip(texts, teachers)]
    return logits, cross_entropy(logits, LABELS), weight * (1 - sum(cosines) / len(cosines))


@pytest.mark.parametrize("weight", [8.0, 0.5])
def test_logits_losses_and_gradients(tiny_clip, names, images, weight):
    trainer = build(tiny_clip, names, W=weight)
    logits, ce, kg = reference(tiny_clip, trainer.model.learner, images, names, TEMPLATE, weight)
    torch.testing.assert_close(trainer.model(images).logits, logits, rtol=1e-4, atol=1e-4)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce", "kg"}
    torch.testing.assert_close(terms["ce"], ce, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["kg"], kg, rtol=1e-4, atol=1e-5)
    assert float(kg.detach()) > 0.01
    assert_same_gradients(terms["ce"] + terms["kg"], ce + kg, trainer.model.learner)
    *_, again = reference(tiny_clip, trainer.model.learner, images, names, TEMPLATE, weight)
    assert_same_gradients(trainer.losses({"img": images, "label": LABELS})["kg"], again, trainer.model.learner)


def test_a_context_that_starts_as_the_teacher_has_distance_zero(tiny_clip, names, images):
    trainer = build(tiny_clip, names, template="a photo of a {}.", CTX_INIT="a photo of a", noise=0.0)
    distance = trainer.losses({"img": images, "label": LABELS})["kg"]
    assert float(distance.detach()) == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(distance, [trainer.model.learner.ctx])
    (full,) = torch.autograd.grad(trainer.losses({"img": images, "label": LABELS})["ce"], [trainer.model.learner.ctx])
    assert float(gradient.abs().max()) < 1e-3 * float(full.abs().max())


def test_teacher_of_textures_and_override(tiny_clip, names):
    trainer = build(tiny_clip, names, template="{} texture.", dataset="DescribableTextures")
    expected = [text_feature(tiny_clip, s, []) for s in sentences("a photo of a {}, a type of texture.", names)]
    torch.testing.assert_close(trainer.teacher.text, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert trainer.teacher_template({"DescribableTextures": "of {}."}) == "of {}."
    trainer.cfg.INPUT.TEMPLATE = "{} texture."
    assert trainer.teacher_template({"DescribableTextures": "of {}."}) == "{} texture."


def test_evaluation_ignores_the_teacher(tiny_clip, names, images):
    trainer = build(tiny_clip, names)
    before = trainer.model(images).logits
    trainer.teacher.text.mul_(-1)
    assert torch.equal(trainer.model(images).logits, before)


def test_parameters_on_vit_b16(wide_clip):
    trainer = build(wide_clip, ["cat", "dog"], N_CTX=4, noise=0.0)
    learner = trainer.model.learner
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {"ctx": (4, 512)}
    assert sum(p.numel() for p in learner.parameters()) == 2_048
    assert float(learner.ctx.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not trainer.teacher.text.requires_grad
    assert not learner.class_bound


def test_bad_weight_is_refused(tiny_clip, names):
    with pytest.raises(ValueError, match=r"TRAINER\.KGCOOP\.W is -1\.0, expected 0 or more"):
        build(tiny_clip, names, W=-1.0)
