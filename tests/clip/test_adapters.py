"""Adapters and projections that can be replaced, against the plain forward on weights that were changed by hand."""

import copy

import clip_reference as reference
import pytest
import torch
from clip_reference import HEADS, LAYERS, WIDTH
from torch import nn
from torch.nn.utils import parametrize

import clip
from clip import Prompts
from clip.adapters import LowRank
from clip.chunks import Chunks
from clip.layers import Attention

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
FUSED = {"q": 0, "k": 1, "v": 2}
PARTS = (*FUSED, "out", "fc1", "fc2")
NAMES = {"out": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}


def low_rank(rank=2, scale=0.5, dropout=0.0):
    return lambda linear, place: LowRank(linear, rank, scale, dropout)


def filled(adapters, seed=0):
    """Adapters whose products are not zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    return adapters


def changed(weights, adapters):
    """The weights with scale * B A added, place by place."""
    weights = {key: value.clone() for key, value in weights.items()}
    for name, adapter in adapters.items():
        tower, block, part = name.split("-")
        prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{block}."
        delta = 0.5 * adapter.up.weight @ adapter.down.weight
        if part in FUSED:
            weights[f"{prefix}attn.in_proj_weight"][FUSED[part] * WIDTH :][:WIDTH] += delta
        else:
            weights[f"{prefix}{NAMES[part]}.weight"] += delta
    return weights


def features(model, images, ids):
    return model.encode_image(images).pooled, model.encode_text(ids).pooled


def plain(weights, images, ids):
    return (
        reference.plain_image(weights, images, LAYERS, HEADS),
        reference.plain_text(weights, ids, LAYERS, HEADS),
    )


def test_split_and_fuse_are_exact(tiny, images, ids):
    before, weights = features(tiny, images, ids), copy.deepcopy(tiny.state_dict())
    attention = [module for module in tiny.modules() if isinstance(module, Attention)]
    for module in attention:
        module.split()
    assert {type(module.q_proj) for module in attention} == {nn.Linear}
    torch.testing.assert_close(features(tiny, images, ids), before, **CLOSE)
    saved = tiny.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[key], weights[key]) for key in weights)
    tiny.load_state_dict({key: 2 * value for key, value in weights.items()})  # strict, under the fused names
    assert torch.equal(
        attention[0].k_proj.weight, 2 * weights["visual.transformer.resblocks.0.attn.in_proj_weight"][WIDTH : 2 * WIDTH]
    )
    tiny.load_state_dict(weights)
    for module in attention:
        module.fuse()
    assert list(tiny.state_dict()) == list(weights)
    assert all(torch.equal(one, two) for one, two in zip(features(tiny, images, ids), before))


def test_a_replaced_projection_is_what_is_computed(tiny, images):
    attention = tiny.visual.blocks[1].attn
    attention.split()
    before = tiny.encode_image(images).pooled
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj  # scores are transposed, so not the same
    assert not torch.allclose(tiny.encode_image(images).pooled, before, atol=1e-3)


def test_adapters_change_the_weights_they_are_on(tiny, images, ids):
    weights = copy.deepcopy(tiny.state_dict())
    adapters = tiny.add_adapters(low_rank(), parts=PARTS)
    assert len(adapters) == 2 * LAYERS * len(PARTS)
    torch.testing.assert_close(features(tiny, images, ids), plain(weights, images, ids), **CLOSE)  # B is 0
    expected = plain(changed(weights, filled(adapters)), images, ids)
    found = features(tiny, images, ids)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(features(copy.deepcopy(tiny), images, ids), found)
    with tiny.without_adapters():
        torch.testing.assert_close(features(tiny, images, ids), plain(weights, images, ids), **CLOSE)
    torch.testing.assert_close(features(tiny, images, ids), found)

    saved = tiny.state_dict()  # OpenAI's names, without the adapters
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[key], weights[key]) for key in weights)
    tiny.load_state_dict(weights)
    torch.testing.assert_close(features(tiny, images, ids), found)

    tiny.merge_adapters()
    assert list(tiny.state_dict()) == list(weights)
    torch.testing.assert_close(features(tiny, images, ids), expected, **CLOSE)
    merged = changed(weights, adapters)
    for key, value in tiny.state_dict().items():
        torch.testing.assert_close(value, merged[key], **CLOSE)


def test_places(tiny, images, ids):
    before = features(tiny, images, ids)
    places = []

    def factory(linear, place):
        places.append((*place, linear.out_features))
        return LowRank(linear, 1)

    adapters = tiny.add_adapters(factory, ["vision"], [-1, 0], ["fc1", "v"])
    last = LAYERS - 1
    wide = 4 * WIDTH
    expected = [("vision", 0, "fc1", wide), ("vision", 0, "v", WIDTH)]
    assert places == [*expected, ("vision", last, "fc1", wide), ("vision", last, "v", WIDTH)]
    assert list(adapters) == ["vision-0-fc1", "vision-0-v", f"vision-{last}-fc1", f"vision-{last}-v"]
    filled(adapters)
    after = features(tiny, images, ids)
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0], atol=1e-3)


class Branch(nn.Module):
    """Half of what a branch adds."""

    def forward(self, x, out):
        assert x.shape == out.shape
        return out / 2


def test_whole_branches(tiny, images):
    """Adapters of a branch and of a layer in it, against weights whose last maps are halved."""
    weights = copy.deepcopy(tiny.state_dict())
    adapters = tiny.add_adapters(lambda module, place: Branch(), ["vision"], parts=["attn", "mlp"])
    inside = filled(tiny.add_adapters(low_rank(), ["vision"], parts=["fc1", "q"]))
    for block in range(LAYERS):
        for name in ("attn.out_proj", "mlp.c_proj"):
            for kind in ("weight", "bias"):
                weights[f"visual.transformer.resblocks.{block}.{name}.{kind}"] /= 2
    expected = reference.plain_image(changed(weights, inside), images, LAYERS, HEADS)
    torch.testing.assert_close(tiny.encode_image(images).pooled, expected, **CLOSE)
    assert len(adapters) == 2 * LAYERS
    with pytest.raises(ValueError, match=r"visual\.transformer\.resblocks\.0\.attn, Branch, has no merged"):
        tiny.merge_adapters()
    torch.testing.assert_close(tiny.encode_image(images).pooled, expected, **CLOSE)  # nothing was merged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"blocks": [LAYERS]},
            rf"blocks \({LAYERS},\) of the text tower, expected different ones of 0 to {LAYERS - 1}",
        ),
        ({"blocks": [0, -LAYERS]}, "expected different ones"),
        ({"blocks": []}, "expected different ones"),
        ({"towers": ["visual"]}, r"on the towers \('visual',\), expected different ones of text, vision"),
        ({"parts": ["q", "q"]}, "on the parts"),
        ({"parts": ["query"]}, r"parts \('query',\), expected different ones of q, k, v, out, fc1, fc2, attn, mlp"),
        ({"parts": ["mlp"]}, "low-rank adapters need a linear layer, got MLP"),
    ],
)
def test_places_that_do_not_exist(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.add_adapters(low_rank(), **settings)


@pytest.mark.parametrize("rank", [0, -1, WIDTH + 1])
def test_ranks_that_do_not_exist(tiny, rank):
    with pytest.raises(ValueError, match=rf"the rank of an adapter is {rank}, expected 1 to {WIDTH}"):
        tiny.add_adapters(low_rank(rank))


def test_towers_without_such_parts(tiny_resnet, make_clip):
    with pytest.raises(ValueError, match="the image tower is a ModifiedResNet without any"):
        tiny_resnet.add_adapters(low_rank())
    with pytest.raises(ValueError, match="the blocks of the vision tower, EvaBlock, have no fc1"):
        make_clip(rope_grid=16).add_adapters(low_rank(), ["vision"], parts=["fc1"])


def test_the_eva_tower(make_clip, images):
    model = make_clip(rope_grid=16)
    weights = copy.deepcopy(model.state_dict())
    before = model.encode_image(images).pooled
    adapters = model.add_adapters(low_rank(), ["vision"], parts=["q", "k", "v", "out"])
    torch.testing.assert_close(model.encode_image(images).pooled, before, **CLOSE)
    filled(adapters)
    found = model.encode_image(images).pooled
    assert not torch.allclose(found, before, atol=1e-3)
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "proj"}
    other = make_clip(rope_grid=16)
    for name, adapter in adapters.items():
        _, block, part = name.split("-")
        weights[f"visual.blocks.{block}.attn.{names[part]}.weight"] += 0.5 * adapter.up.weight @ adapter.down.weight
    other.load_state_dict(weights)
    torch.testing.assert_close(found, other.encode_image(images).pooled, **CLOSE)
    model.merge_adapters()
    torch.testing.assert_close(model.encode_image(images).pooled, found, **CLOSE)


# chunks that are computed again


def gradients(model, ids, adapters, kept):
    """Gradients of the adapters for chunks of one sentence, of which the last `kept` keep their activations."""
    torch.manual_seed(3)
    found = model.encode_text(ids, chunks=Chunks(1, kept))
    loss = found.pooled.square().sum() + found.tokens[:, :4].sum()
    return loss, torch.autograd.grad(loss, list(adapters.parameters()))


def test_recomputed_chunks_draw_the_same_dropout(tiny, ids):
    tiny.requires_grad_(False)
    adapters = filled(tiny.add_adapters(low_rank(dropout=0.25), ["text"])).train().requires_grad_()
    loss, expected = gradients(tiny, ids, adapters, kept=3)
    torch.rand(5)  # wherever the generator is by then
    again, found = gradients(tiny, ids, adapters, kept=1)
    assert torch.equal(loss, again)
    torch.testing.assert_close(found, expected)
    adapters.eval()
    assert not torch.allclose(gradients(tiny, ids, adapters, kept=3)[0], loss, rtol=1e-3)  # it did drop


def test_sentences_drop_out_on_their_own(tiny, ids):
    """Equal sentences are computed once, but not where numbers are drawn."""
    duplicates = ids[:1].expand(3, -1)
    adapters = filled(tiny.add_adapters(low_rank(dropout=0.5), ["text"]))
    assert torch.equal(*tiny.encode_text(duplicates).pooled[:2])
    adapters.train()
    assert not torch.allclose(*tiny.encode_text(duplicates).pooled[:2], atol=1e-3)


def test_switched_off_adapters_stay_off_when_recomputed(tiny, ids, rng):
    tiny.requires_grad_(False)
    filled(tiny.add_adapters(low_rank(), ["text"]))
    layer = torch.randn(3, WIDTH, generator=rng).requires_grad_()
    prompts = Prompts((layer,), torch.tensor([1, 2, 3]))
    found = []
    for kept in (3, 1):
        with tiny.without_adapters():
            pooled = tiny.encode_text(ids, prompts, chunks=Chunks(1, kept), tokens=False).pooled
        found.append(torch.autograd.grad(pooled.square().sum(), layer)[0])  # when they are on again
    torch.testing.assert_close(found[1], found[0])


# precision


def test_what_learns_stays_fp32(tiny):
    """Adapters, biases of layers, and matrices under a parametrisation, by identity."""

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    adapters = tiny.add_adapters(low_rank(), ["text"])
    linear = tiny.visual.blocks[0].mlp.c_fc
    other = tiny.visual.blocks[1].mlp.c_fc
    parametrize.register_parametrization(linear, "weight", Doubled())
    biases = [p for name, p in tiny.named_parameters() if name.endswith("bias")]
    learned = [*adapters.parameters(), *biases]
    clip.convert_weights(tiny, torch.bfloat16, learned)
    assert {parameter.dtype for parameter in learned} == {torch.float32}
    assert linear.parametrizations.weight.original.dtype == other.weight.dtype == torch.bfloat16
    assert tiny.transformer.resblocks[0].attn.q_proj.base.weight.dtype == torch.bfloat16
    clip.convert_weights(tiny, torch.bfloat16)  # nothing learns: adapters are cast with the rest
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("split", [False, True])
def test_keys_and_values_alone(split):
    attention, x = Attention(64, 2), torch.randn(2, 5, 64)
    expected = attention.project(x)[1:]
    if split:
        attention.split()
    torch.testing.assert_close(tuple(attention.keys_values(x)), tuple(expected), **CLOSE)


def test_an_adapter_around_a_module_calls_it_itself(tiny, ids):
    class Twice(nn.Module):
        def around(self, base, x, *args, **options):
            return base(2 * x, *args, **options)

    model = copy.deepcopy(tiny)
    model.add_adapters(lambda *_: Twice(), ["text"], [0], ["mlp"])
    block, seen = model.transformer.resblocks[0], torch.randn(1, 3, model.transformer.width)
    torch.testing.assert_close(block.mlp(seen), tiny.transformer.resblocks[0].mlp(2 * seen), **CLOSE)
    with model.without_adapters():
        torch.testing.assert_close(model.encode_text(ids).pooled, tiny.encode_text(ids).pooled)
