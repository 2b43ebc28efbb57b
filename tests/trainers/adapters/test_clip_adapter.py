"""CLIP-Adapter against its formula, one image at a time."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from trainers.adapters.clip_adapter import Adapter, CLIPAdapter
from trainers.base import PromptedCLIP


def build(model, names, *options, template="a photo of a {}."):
    class Bare(CLIPAdapter):
        pass

    Bare.template = template
    trainer = object.__new__(Bare)
    trainer.cfg = CfgNode({"TRAINER": CLIPAdapter.defaults()})
    trainer.cfg.TRAINER.CLIP_ADAPTER.merge_from_list(list(options))
    trainer.check_cfg(trainer.cfg)
    torch.manual_seed(1)
    learner = trainer.build_learner(model, names)
    return PromptedCLIP(model, learner, trainer.build_score(learner))


def plain_logits(model, learner, images, names, ratio, template):
    rows = []
    for image in images:
        x = model.encode_image(image[None]).pooled[0]
        hidden = (learner.fc[0].weight @ x).clamp(min=0)
        mixed = ratio * (learner.fc[2].weight @ hidden).clamp(min=0) + (1 - ratio) * x
        logits = []
        for name in names:
            ids = clip.tokenize([template.format(name.replace("_", " "))], vocab_size=model.vocab_size)
            w = model.encode_text(ids).pooled[0]
            logits.append(model.logit_scale.exp() * (mixed / mixed.norm()) @ (w / w.norm()))
        rows.append(torch.stack(logits))
    return torch.stack(rows)


@pytest.mark.parametrize(("ratio", "template"), [(0.2, "a photo of a {}."), (0.9, "{} texture.")])
def test_logits_and_gradients(tiny_clip, names, rng, ratio, template):
    images, label = torch.randn(3, 3, 32, 32, generator=rng), torch.tensor([0, 3, 1])
    model = build(tiny_clip, names, "RATIO", ratio, template=template)
    found = model(images).logits
    expected = plain_logits(tiny_clip, model.learner, images, names, ratio, template)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    parameters = list(model.learner.parameters())
    own = torch.autograd.grad(F.cross_entropy(found, label), parameters)
    reference = torch.autograd.grad(F.cross_entropy(expected, label), parameters)
    for one, other in zip(own, reference):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_without_the_adapters_share_it_is_zero_shot_clip(tiny_clip, names, rng):
    images = torch.randn(3, 3, 32, 32, generator=rng)
    with torch.no_grad():
        found = build(tiny_clip, names, "RATIO", 0.0)(images).logits
        ids = clip.tokenize([f"a photo of a {n.replace('_', ' ')}." for n in names], vocab_size=tiny_clip.vocab_size)
        torch.testing.assert_close(found, tiny_clip(images, ids)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1024, 512])
def test_parameters(width):
    learner = Adapter(torch.zeros(3, width), reduction=4)
    assert {name: tuple(p.shape) for name, p in learner.named_parameters()} == {
        "fc.0.weight": (width // 4, width),
        "fc.2.weight": (width, width // 4),
    }
    assert list(learner.state_dict()) == ["fc.0.weight", "fc.2.weight"]  # the released names; nothing of the classes
    assert not learner.class_bound
    assert float(learner.fc[0].weight.detach().abs().max()) <= width**-0.5 + 1e-6  # torch's start


def test_bad_options(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)RATIO is 1.5.*REDUCTION is 0"):
        build(tiny_clip, names, "RATIO", 1.5, "REDUCTION", 0)
    with pytest.raises(ValueError, match="REDUCTION is 64, expected 1 to 32"):
        build(tiny_clip, names, "REDUCTION", 64)
