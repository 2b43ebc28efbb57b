"""Layers, attention maps and features before the projection, against the plain forward, block by block."""

import clip_reference as reference
import pytest
import torch
from clip_reference import HEADS, LAYERS

import clip
from clip.adapters import LowRank
from clip.chunks import Chunks

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def plain(weights, x, prefix, last, causal):
    """Outputs of the blocks, attention weights of the blocks, normalised last output, of x (rows, L, d)."""
    layers, maps = [], []
    for i in range(LAYERS):
        name = f"{prefix}transformer.resblocks.{i}"
        h = reference.norm(x, weights, f"{name}.ln_1")
        width = h.shape[-1]
        qkv = h @ weights[f"{name}.attn.in_proj_weight"].T + weights[f"{name}.attn.in_proj_bias"]
        q, k = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.split(width, dim=-1)[:2])
        scores = q @ k.transpose(2, 3) / (width // HEADS) ** 0.5
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        maps.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        x = reference.block(x, weights, name, HEADS, reference.quick_gelu, causal)
        layers.append(x)
    return layers, maps, reference.norm(x, weights, last)


def test_images(tiny, images):
    weights = tiny.state_dict()
    start = reference.norm(reference.patches(weights, images), weights, "visual.ln_pre")
    layers, maps, features = plain(weights, start, "visual.", "visual.ln_post", False)
    before = tiny.encode_image(images)
    with clip.record(tiny, "vision", layers=[0, -1], attention=[1]) as seen:
        found = tiny.encode_image(images)
    assert all(torch.equal(one, two) for one, two in zip(found, before))
    assert set(seen.layers) == {0, -1}
    assert set(seen.attention) == {1}
    torch.testing.assert_close(seen.layers[0], layers[0], **CLOSE)
    torch.testing.assert_close(seen.layers[-1], layers[-1], **CLOSE)
    torch.testing.assert_close(seen.attention[1], maps[1], **CLOSE)
    torch.testing.assert_close(seen.tokens, features, **CLOSE)
    torch.testing.assert_close(seen.pooled @ tiny.visual.proj, found.pooled, **CLOSE)
    kept = seen.pooled
    tiny.encode_image(images + 1)  # outside nothing is kept
    assert seen.pooled is kept
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


def test_sentences_row_by_row(tiny, ids):
    """Of different lengths, equal ones and in chunks: positions are those of the rows."""
    weights, rows = tiny.state_dict(), torch.cat([ids[[2, 0, 1]], ids[:1]])
    length = int(rows.argmax(-1).max()) + 1
    start = weights["token_embedding.weight"][rows[:, :length]] + weights["positional_embedding"][:length]
    layers, maps, features = plain(weights, start, "", "ln_final", True)
    with clip.record(tiny, "text", layers=[1], attention=[0]) as seen:
        found = tiny.encode_text(rows, chunks=Chunks(1))
    torch.testing.assert_close(seen.layers[1], layers[1], **CLOSE)
    torch.testing.assert_close(seen.attention[0], maps[0], **CLOSE)
    torch.testing.assert_close(seen.tokens, features, **CLOSE)
    torch.testing.assert_close(seen.pooled, features[torch.arange(4), rows.argmax(-1)], **CLOSE)
    torch.testing.assert_close(found.pooled, tiny.encode_text(rows).pooled, **CLOSE)


def test_it_has_gradients_and_sees_adapters(tiny, images):
    with clip.record(tiny, "vision", attention=[0]) as seen:
        tiny.encode_image(images)
    plain_map = seen.attention[0]
    adapters = tiny.add_adapters(lambda linear, place: LowRank(linear, 1), ["vision"], parts=["q"])
    torch.nn.init.ones_(adapters["vision-0-q"].up.weight)
    with clip.record(tiny, "vision", layers=[0], attention=[0]) as seen:
        tiny.encode_image(images)
    assert not torch.allclose(seen.attention[0], plain_map, atol=1e-3)
    for value in (seen.attention[0].square().sum(), seen.layers[0].sum(), seen.pooled[:, 0].sum()):
        assert torch.autograd.grad(value, adapters["vision-0-q"].up.weight, retain_graph=True)[0].any()


def test_the_eva_tower(make_clip, images):
    model = make_clip(rope_grid=16)
    with clip.record(model, "vision", layers=[0], attention=[0, 2]) as seen:
        found = model.encode_image(images)
    rows = seen.attention[2]
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    torch.testing.assert_close(model.visual.head(seen.pooled), found.pooled)
    block = model.visual.blocks[0]
    tokens = model.visual.embed(images)
    cos, sin = model.visual._rotary(tokens, None, tokens.shape[1])
    v = block.attn.project(block.norm1(tokens), cos, sin)[2]
    out = block.attn.proj((seen.attention[0] @ v).transpose(1, 2).flatten(2))
    x = tokens + out
    torch.testing.assert_close(seen.layers[0], x + block.mlp(block.norm2(x)), **CLOSE)


def test_what_does_not_exist(tiny, tiny_resnet):
    for number in (LAYERS, -LAYERS - 1):
        with pytest.raises(ValueError, match=f"block {number} of the text tower is asked for, expected -{LAYERS} to"):
            clip.record(tiny, "text", layers=[number]).__enter__()
    with pytest.raises(ValueError, match="the tower is 'image', expected one of text, vision"):
        clip.record(tiny, "image").__enter__()
    with pytest.raises(ValueError, match="the image tower is a ModifiedResNet without any"):
        clip.record(tiny_resnet, "vision").__enter__()
