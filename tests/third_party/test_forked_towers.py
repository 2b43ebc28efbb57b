"""Prompts of forks that are built with `design_details`, against the same vectors as `clip.Prompts`."""

import pytest
import torch

import clip
from clip import clip as old_clip
from tests.tolerance import assert_close

SIZES = {"image_resolution": 32, "vision_width": 48, "context_length": 77, "vocab_size": 2048, "transformer_width": 32}
HEADS = {"vision_heads": 2, "transformer_heads": 2}


def make(vision_layers=3, vision_patch_size=16, **sizes):
    torch.manual_seed(0)
    sizes = {**SIZES, **sizes}
    return clip.CLIP(
        embed_dim=16,
        vision_layers=vision_layers,
        vision_patch_size=vision_patch_size,
        transformer_layers=3,
        **sizes,
        **HEADS,
    ).eval()


@pytest.fixture
def tiny():
    return make()


@pytest.fixture
def fork(monkeypatch):
    """Builds a model from another one's weights and `design_details`."""
    monkeypatch.setattr(old_clip, "_vocabulary", old_clip.VOCAB_SIZE)

    def build(model, **details):
        numbers = {name: torch.tensor(value) for name, value in HEADS.items()}
        return old_clip.build_model({**model.state_dict(), **numbers}, details).float()

    return build


@pytest.fixture
def images(rng):
    return torch.randn(2, 3, 32, 32, generator=rng)


def embedded(model, ids, context):
    """Sentences (L, rows, d) with a context behind the first token, as the trainers of the forks make them."""
    x = model.token_embedding(ids)
    x = torch.cat([x[:, :1], context.expand(len(ids), -1, -1), x[:, 1 + len(context) :]], dim=1)
    return (x + model.positional_embedding).permute(1, 0, 2)


def pooled(model, x, ids):
    x = model.ln_final(x.permute(1, 0, 2))
    return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ model.text_projection


def text_prompts(*layers):
    return clip.Prompts(layers, torch.arange(1, 1 + len(layers[0])))


@pytest.mark.parametrize("trainer", ["MaPLe", "AnHeir"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompts_handed_to_the_towers(tiny, fork, images, rng, depth, trainer):
    model = fork(tiny, trainer=trainer, vision_depth=0, language_depth=0, vision_ctx=0, language_ctx=0, maple_length=2)
    assert model.state_dict().keys() == tiny.state_dict().keys()
    seen = [torch.randn(2, 48, generator=rng, requires_grad=True) for _ in range(depth)]
    said = [torch.randn(2, 32, generator=rng, requires_grad=True) for _ in range(depth)]
    found = model.visual(images, seen[0], seen[1:])
    expected = tiny.encode_image(images, clip.Prompts(tuple(seen), None)).pooled
    assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found.sum(), seen), torch.autograd.grad(expected.sum(), seen)):
        assert_close(one, other)

    ids = old_clip.tokenize(["a b cat", "a b very long dog."])
    x, deep, used = model.transformer([embedded(model, ids, said[0]), said[1:], 0])
    expected = tiny.encode_text(ids, text_prompts(*said)).pooled
    assert used == depth - 1
    assert deep is not None
    assert_close(pooled(model, x, ids), expected)
    for one, other in zip(
        torch.autograd.grad(pooled(model, x, ids).sum(), said), torch.autograd.grad(expected.sum(), said)
    ):
        assert_close(one, other)
    if depth > 1:  # a deliberate mistake: the layers in another order
        assert (tiny.encode_text(ids, text_prompts(*said[::-1])).pooled - expected).abs().max() > 1e-3


@pytest.mark.parametrize("trainer", ["IVLP", "VPT", "NewName"])
def test_prompts_learned_in_the_towers(tiny, fork, images, rng, trainer):
    model = fork(tiny, trainer=trainer, vision_depth=3, vision_ctx=4, language_depth=2, language_ctx=2)
    own = {name: value for name, value in model.named_parameters() if "VPT" in name}
    assert {name: tuple(value.shape) for name, value in own.items()} == {
        "visual.VPT": (4, 48),
        "visual.transformer.resblocks.1.VPT_shallow": (4, 48),
        "visual.transformer.resblocks.2.VPT_shallow": (4, 48),
        "transformer.resblocks.1.VPT_shallow": (2, 32),
    }
    assert all(0.005 < float(value.detach().std()) < 0.05 for value in own.values())
    with torch.no_grad():
        for value in own.values():
            value.normal_(generator=rng)
    seen = tuple(value for name, value in own.items() if name.startswith("visual"))
    for found in (model.visual(images), model.encode_image(images)):
        assert_close(found, tiny.encode_image(images, clip.Prompts(seen, None)).pooled)
    ids, context = old_clip.tokenize(["a b cat"]), torch.randn(2, 32, generator=rng)
    found = pooled(model, model.transformer(embedded(model, ids, context)), ids)
    expected = tiny.encode_text(ids, text_prompts(context, own["transformer.resblocks.1.VPT_shallow"])).pooled
    assert_close(found, expected)
    found.sum().backward()
    assert own["transformer.resblocks.1.VPT_shallow"].grad.abs().max() > 0


def test_without_prompts_the_towers_are_plain(tiny, fork, images):
    model = fork(tiny, trainer="CoOp", vision_depth=0, vision_ctx=0, language_depth=0, language_ctx=0)
    assert not any("VPT" in name for name, _ in model.named_parameters())
    assert torch.equal(model.visual(images), tiny.encode_image(images).pooled)


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"vision_depth": 4, "vision_ctx": 2}, r"vision_depth 4 with vision_ctx 2; expected a depth of at most 3"),
        (
            {"language_depth": 2, "language_ctx": 0},
            r"language_depth 2 with language_ctx 0; expected .* at least 1 prompt",
        ),
    ],
)
def test_details_that_the_towers_cannot_have(tiny, fork, details, message):
    with pytest.raises(ValueError, match=message):
        fork(tiny, trainer="IVLP", **details)


def test_a_resnet_takes_no_prompts(fork):
    resnet = make((1, 1, 1, 1), None, vision_width=4, image_resolution=64)
    with pytest.raises(ValueError, match="vision_depth 1; only a ViT"):
        fork(resnet, trainer="VPT", vision_depth=1, vision_ctx=2)
