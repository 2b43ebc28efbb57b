"""Learned parameters are fp32 and train, in adapters or in CLIP itself."""

import copy

import pytest
import torch
from plain_towers import trainer_of
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip.adapters import LowRank
from dassl.engine.precision import Precision
from trainers.base import PromptTrainer
from trainers.parts.prompts import TemplateText


class Parts(PromptTrainer):
    """Learns the biases of both towers, or adapters."""

    node = "PARTS"
    by_steps = False

    @staticmethod
    def defaults():
        return CfgNode({"PARTS": {"PREC": "bf16", "KIND": "biases"}})

    def build_learner(self, model, classnames):
        learner = TemplateText(model, classnames, self.template)
        if self.options.KIND == "biases":
            learner.biases = nn.ParameterList(p for name, p in model.named_parameters() if name.endswith("bias"))
        else:
            learner.adapters = model.add_adapters(lambda linear, place: LowRank(linear, 2, dropout=0.25))
        return learner


@pytest.fixture
def build(tiny_clip, names):
    """A trainer whose model is built as in a run."""

    def make(kind, precision, chunk=0):
        trainer = trainer_of(Parts, copy.deepcopy(tiny_clip), names, KIND=kind)
        trainer.cfg.defrost()
        trainer.cfg.TRAIN = CfgNode({"INIT_FROM": "", "MEMORY_BUDGET": 0, "TEXT_CHUNK": chunk, "IMAGE_CHUNK": 0})
        trainer.cfg.MODEL = CfgNode({"BACKBONE": {"NAME": "tiny"}})
        trainer.precision = Precision(precision, "cpu")
        trainer.dm.dataset.classnames = names
        trainer.load_clip = lambda: copy.deepcopy(tiny_clip)
        trainer.register_model = lambda name, learner: None
        torch.manual_seed(0)
        trainer.build_model()
        with torch.no_grad():
            for parameter in trainer.model.learner.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return trainer

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
@pytest.mark.parametrize("kind", ["biases", "adapters"])
def test_what_learns_is_fp32(build, images, kind, precision):
    trainer = build(kind, precision)
    model, learned = trainer.model, list(trainer.model.learner.parameters())
    assert {parameter.dtype for parameter in learned} == {torch.float32}
    frozen = [p for name, p in model.clip.named_parameters() if name.endswith("c_fc.weight")]
    assert {parameter.dtype for parameter in frozen} == {trainer.precision.dtype}
    inside = {id(parameter) for parameter in model.clip.parameters()}
    assert all(id(parameter) in inside for parameter in learned)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(parameter) for parameter in learned}
    with trainer.precision.autocast():
        loss = F.cross_entropy(model(images).logits, torch.tensor([0, 3, 1]))
    gradients = torch.autograd.grad(loss, learned, allow_unused=True)
    assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.float32}
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 0.9 * len(learned)


def test_text_chunks_change_no_gradient_of_adapters_with_dropout(build, images, monkeypatch):
    """TRAIN.TEXT_CHUNK 2, once computed again in the backward pass and once kept."""
    trainer = build("adapters", "fp32", chunk=2)
    model = trainer.model.train()
    learned = list(model.learner.parameters())

    def gradients():
        torch.manual_seed(5)
        loss = F.cross_entropy(model(images).logits, torch.tensor([0, 3, 1]))
        return loss, torch.autograd.grad(loss, learned)

    loss, found = gradients()
    monkeypatch.setattr("clip.chunks.recomputed", lambda function, *arguments: function(*arguments))
    kept, expected = gradients()
    assert torch.equal(loss, kept)
    torch.testing.assert_close(found, expected)
