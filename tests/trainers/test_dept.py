"""DePT around CoOp, KgCoOp and MaPLe: answers, loss terms and gradients with loops, and other classes."""

import copy

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy, trainer_of

from dassl.engine import TRAINER_REGISTRY
from tests.tolerance import assert_close
from trainers.dept import CoOpDePT, Decoupling, KgCoOpDePT, MaPLeDePT
from trainers.parts.wrapper import wrap

LABELS = torch.tensor([0, 3, 1])
METHODS = {
    "CoOp": (CoOpDePT, {"N_CTX": 3}),
    "KgCoOp": (KgCoOpDePT, {}),
    "MaPLe": (MaPLeDePT, {"PROMPT_DEPTH": 3}),
}


def build(name, model, names, own=(), cls=None):
    torch.manual_seed(1)
    method, options = METHODS[name]
    return trainer_of(cls or method, copy.deepcopy(model), names, others={"DEPT": dict(own)}, **options)


def head_row(head, feature, side):
    scale, shift = getattr(head, f"{side}_scale"), getattr(head, f"{side}_shift")
    scaled = torch.stack([scale[k] * feature[k] + shift[k] for k in range(len(feature))])
    return torch.stack([weight @ scaled + bias for weight, bias in zip(head.linear.weight, head.linear.bias)])


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients(tiny_clip, names, images, name):
    trainer = build(name, tiny_clip, names, {"WEIGHT": 0.4})
    output, head = trainer.model(images), trainer.model.learner.dept
    rows = [head_row(head, output.text.pooled[label], "text") for label in LABELS.tolist()]
    rows += [head_row(head, feature, "image") for feature in output.image.pooled]
    plain = super(type(trainer).__mro__[1], trainer).losses({"img": images, "label": LABELS})  # of the wrapped method
    expected = {**plain, "ce": 0.6 * cross_entropy(output.logits, LABELS)}
    expected["head"] = 0.4 * cross_entropy(torch.stack(rows), torch.cat([LABELS, LABELS]))
    terms = trainer.losses({"img": images, "label": LABELS})
    assert terms.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(terms[key], value, 2e-5)
    assert_same_gradients(sum(terms.values()), sum(expected.values()), trainer.model.learner)


def test_answers(tiny_clip, names, images):
    trainer = build("CoOp", tiny_clip, names)
    plain = trainer.model(images).logits  # in training: the method's
    output = trainer.model.eval()(images)
    head = torch.stack([head_row(trainer.model.learner.dept, feature, "image") for feature in output.image.pooled])
    assert_close(output.logits, 0.3 * plain + 0.7 * head)
    assert not torch.allclose(output.logits, plain, atol=0.01)
    trainer.other_classes = True
    assert_close(trainer.model(images).logits, plain)
    alone = build("CoOp", tiny_clip, names, {"FUSION": False})
    assert_close(alone.model.eval()(images).logits, head)


def test_other_classes_keep_what_is_not_theirs(tiny_clip, names, tmp_path):
    trained, other = build("CoOp", tiny_clip, names), build("CoOp", tiny_clip, names[:2])
    other.classnames = lambda: names[:2]
    checkpoint = {"state_dict": trained.model.learner.state_dict(), "classnames": names, "epoch": 1}
    weights = other.for_classes(tmp_path, checkpoint)
    other.model.learner.load_state_dict(weights)
    assert torch.equal(other.model.learner.ctx, trained.model.learner.ctx)
    assert other.model.learner.dept.linear.weight.shape == (2, 32)
    other.classnames = lambda: names
    assert other.for_classes(tmp_path, checkpoint)["dept.linear.weight"].shape == (5, 32)


def test_number_of_parameters(wide_clip):
    learner = build("CoOp", wide_clip, ["cat", "dog"]).model.learner
    assert sum(p.numel() for p in learner.parameters()) == 3 * 512 + 4 * 512 + 2 * 513


def test_it_needs_one_feature_of_each_image_and_class(tiny_clip, names):
    method = wrap(TRAINER_REGISTRY.get("PLOT"), Decoupling, "PLOTDePT")
    TRAINER_REGISTRY._obj_map.pop("PLOTDePT")
    with pytest.raises(ValueError, match="DePT compares one feature of each image and class"):
        trainer_of(method, tiny_clip, names, others={"DEPT": {}})


@pytest.mark.parametrize("weight", [-0.1, 1.2])
def test_options_that_do_not_exist(tiny_clip, names, weight):
    with pytest.raises(ValueError, match=f"TRAINER.DEPT.WEIGHT is {weight}, expected a number from 0 to 1"):
        build("CoOp", tiny_clip, names, {"WEIGHT": weight})
