"""MMA: logits and both kinds of gradients against plain blocks in double precision; parameters and options."""

import copy

import pytest
import torch
from plain_towers import cross_entropy, logits_of, trainer_of

import clip
from tests.tolerance import assert_close
from trainers.adapters.mma import MMA

LABELS = torch.tensor([0, 3, 1])


def build(model, names, noise=0.1, **options):
    torch.manual_seed(1)
    trainer = trainer_of(MMA, copy.deepcopy(model), names, noise=noise, **{"BLOCKS": 2, "WIDTH": 6, **options})
    trainer.model.learner.eval()
    return trainer


def beside(x, norm, down, shared, up, scale, released):
    """Addition of an adapter to a sequence (L, d); `released`: its weights' gradients are those of scale 1."""
    if released:
        x = scale * x + ((1 - scale) * x).detach()
    h = (norm(x) @ down.weight.T + down.bias).clamp(min=0)
    h = (h @ shared.weight.T + shared.bias).clamp(min=0)
    change = h @ up.weight.T + up.bias
    return change + ((scale - 1) * change).detach() if released else scale * change


def reference_logits(learner, model, names, images, scale, released, first=2):
    """`model` and `learner` in double precision; adapters beside blocks `first` and later, of 4."""

    def run(tower, blocks, x, *mask):
        for i, block in enumerate(blocks):
            added = 0
            if i >= first:
                own = learner.adapters[f"{tower}-{i}-block"]
                added = beside(x, block.ln_1, own.down, learner.shared[i - first], own.up, scale, released)
            x = block(x[None], *mask)[0] + added
        return x

    visual, features, texts = model.visual, [], []
    for image in images.double():
        grid = visual.conv1(image[None])[0].flatten(1).T
        x = visual.ln_pre(torch.cat([visual.class_embedding[None], grid]) + visual.positional_embedding)
        features.append(visual.ln_post(run("vision", visual.blocks, x)[0]) @ visual.proj)
    for name in names:
        ids = clip.tokenize(f"a photo of a {name.replace('_', ' ')}.", vocab_size=model.vocab_size)[0]
        x = model.token_embedding.weight[ids] + model.positional_embedding
        mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=x.dtype).triu(1)
        texts.append(
            model.ln_final(run("text", model.transformer.resblocks, x, mask)[ids.argmax()]) @ model.text_projection
        )
    return logits_of(model, features, texts)


@pytest.mark.parametrize(("kind", "scale"), [("released", 0.2), ("plain", 0.2), ("released", 0.001)])
def test_logits_and_gradients(tiny_clip, names, images, kind, scale):
    trainer = build(tiny_clip, names, SCALE=scale, GRADIENT=kind)
    learner = trainer.model.learner
    plain, double = copy.deepcopy(tiny_clip).double(), copy.deepcopy(learner).double()
    expected = reference_logits(double, plain, names, images, scale, kind == "released")
    found = trainer.model(images).logits
    assert_close(found.double(), expected, 2e-5)
    if scale > 0.01:
        without = reference_logits(double, plain, names, images, 0.0, False)
        assert not torch.allclose(expected, without, atol=0.02)  # the adapters matter
    terms = trainer.losses({"img": images, "label": LABELS})
    assert list(terms) == ["ce"]
    own = torch.autograd.grad(terms["ce"], list(learner.parameters()))
    other = torch.autograd.grad(cross_entropy(expected, LABELS), list(double.parameters()))
    for one, reference in zip(own, other):
        assert float(reference.abs().max()) > 0
        assert_close(one.double(), reference, 2e-3)
    if kind == "released":  # the gradient of the loss itself is another
        truth = reference_logits(double, plain, names, images, scale, False)
        direct = torch.autograd.grad(cross_entropy(truth, LABELS), list(double.parameters()))
        assert float(direct[0].abs().max()) < 0.5 * float(own[0].abs().max())


def test_a_block_has_its_layer_in_common_with_that_of_the_other_tower(tiny_clip, names):
    learner = build(tiny_clip, names).model.learner
    towers = ("text", "vision")
    assert list(learner.adapters) == [f"{tower}-{block}-block" for tower in towers for block in (2, 3)]
    for block in (2, 3):
        one, other = (learner.adapters[f"{tower}-{block}-block"].others[1] for tower in towers)
        assert one is other is learner.shared[block - 2]
    assert all(".shared" not in name for name in learner.adapters.state_dict())


def test_plain_clip_without_the_adapters(tiny_clip, names, images):
    trainer = build(tiny_clip, names, SCALE=1.0)
    model = trainer.model.clip
    with model.without_adapters():
        assert torch.equal(model.encode_image(images).pooled, tiny_clip.encode_image(images).pooled)
    assert list(model.state_dict()) == list(tiny_clip.state_dict())
    other = copy.deepcopy(tiny_clip)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.encode_image(images).pooled, tiny_clip.encode_image(images).pooled)
    with pytest.raises(ValueError, match="Beside, has no merged"):
        model.merge_adapters()
    with clip.record(model, "vision", layers=[-1], attention=[3]) as seen:
        changed = model.encode_image(images)
    assert seen.layers[3 if 3 in seen.layers else -1].shape == (3, 17, 64)
    assert seen.attention[3].shape[-1] == 17
    assert not torch.allclose(changed.pooled, tiny_clip.encode_image(images).pooled, atol=1e-3)


def test_number_of_parameters_and_their_start(wide_clip):
    wide = copy.deepcopy(wide_clip)
    learner = trainer_of(MMA, wide, ["cat"], noise=0.0, BLOCKS=1).model.learner
    text, vision = (2 * width * 32 + width + 32 for width in (512, 64))
    assert sum(p.numel() for p in learner.parameters()) == text + vision + 32 * 33
    up = learner.adapters["text-11-block"].up
    assert float(up.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert not up.bias.detach().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"BLOCKS": 5},
            r"adapters on the blocks \(-5, -4, -3, -2, -1\) of the text tower, expected different ones of 0",
        ),
        ({"BLOCKS": 0}, r"TRAINER.MMA.BLOCKS is 0, expected 1 or more"),
        ({"WIDTH": 0}, r"TRAINER.MMA.WIDTH is 0"),
        ({"GRADIENT": "none"}, r"GRADIENT is 'none', expected one of released, plain"),
        ({"SCALE": 0.0}, r"SCALE is 0.0, expected a number above 0"),
    ],
)
def test_options_that_do_not_exist(tiny_clip, names, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_clip, names, **options)


def test_a_resnet_has_no_blocks(names):
    resnet = clip.CLIP(32, 64, (1, 1, 1, 1), 16, None, 77, 2048, 48, 2, 4).requires_grad_(False)
    with pytest.raises(ValueError, match="the image tower is a ModifiedResNet without any"):
        build(resnet, names)
