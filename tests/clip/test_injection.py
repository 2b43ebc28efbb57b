"""Prompts inside the towers, against forwards that insert them row by row."""

import clip_reference as reference
import pytest
import torch
from clip_reference import HEADS, LAYERS, WIDTH

import clip
from clip import Prompts
from clip.text_layout import length_groups

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def vectors(rng, depth, *shape):
    return tuple(torch.randn(*shape, WIDTH, generator=rng) for _ in range(depth))


def per_row(layers, rows):
    return [list(layer) if layer.dim() == 3 else [layer] * rows for layer in layers]


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("depth", [1, 2, LAYERS])
def test_vision_prompts(tiny, images, rng, depth, own_rows):
    layers = vectors(rng, depth, *((3, 2) if own_rows else (2,)))
    found = tiny.encode_image(images, Prompts(layers, None))
    pooled, tokens = reference.prompted_image(tiny.state_dict(), images, LAYERS, HEADS, per_row(layers, 3))
    assert found.tokens.shape == (3, 19, 32)
    torch.testing.assert_close(found.pooled, pooled, **CLOSE)
    torch.testing.assert_close(found.tokens, tokens, **CLOSE)
    assert not torch.allclose(found.pooled, tiny.encode_image(images).pooled, atol=1e-3)


@pytest.mark.parametrize("own_slots", [False, True])
@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_text_prompts(tiny, ids, rng, depth, own_rows, own_slots):
    layers = vectors(rng, depth, *((3, 2) if own_rows else (2,)))
    slots = torch.tensor([[1, 3], [4, 2], [5, 8]]) if own_slots else torch.tensor([1, 2])
    found = tiny.encode_text(ids, Prompts(layers, slots))
    rows = slots.expand(3, 2).tolist()
    pooled, tokens = reference.prompted_text(tiny.state_dict(), ids, LAYERS, HEADS, per_row(layers, 3), rows)
    torch.testing.assert_close(found.pooled, pooled, **CLOSE)
    torch.testing.assert_close(found.tokens, tokens[:, : found.tokens.shape[1]], **CLOSE)
    assert not torch.allclose(found.pooled, tiny.encode_text(ids).pooled, atol=1e-3)


@pytest.mark.parametrize("with_prompts", [False, True])
def test_label_tokens(tiny, ids, rng, with_prompts):
    labels = torch.randn(3, 1, WIDTH, generator=rng)
    label_slots = torch.tensor([[5], [6], [7]])
    layers = vectors(rng, 2, 3) if with_prompts else ()
    slots = torch.tensor([1, 2, 3])
    prompts = Prompts(layers, slots) if with_prompts else None
    found = tiny.encode_text(ids, prompts, labels=Prompts((labels,), label_slots))
    pooled, _ = reference.prompted_text(
        tiny.state_dict(), ids, LAYERS, HEADS, per_row(layers, 3), [[1, 2, 3]] * 3, labels, label_slots.tolist()
    )
    torch.testing.assert_close(found.pooled, pooled, **CLOSE)


def test_modes_as_rows(tiny, images, rng):
    """M modes: each image repeated M times in a row; the prompts of the modes are tiled over the images."""
    modes = 2
    layers = vectors(rng, 3, modes, 2)
    tokens = tiny.visual.embed(images).repeat_interleave(modes, 0)
    found = tiny.visual.encode(tokens, Prompts(tuple(layer.repeat(3, 1, 1) for layer in layers), None)).pooled
    found = found.unflatten(0, (3, modes))
    for m in range(modes):
        one = [[layer[m]] * 3 for layer in layers]
        expected, _ = reference.prompted_image(tiny.state_dict(), images, LAYERS, HEADS, one)
        torch.testing.assert_close(found[:, m], expected, **CLOSE)
    wrong = tiny.visual.encode(tokens, Prompts(tuple(layer.repeat_interleave(3, 0) for layer in layers), None)).pooled
    assert not torch.allclose(wrong.unflatten(0, (3, modes)), found, atol=1e-3)


def test_a_slot_or_layer_out_of_place_changes_the_result(tiny, images, ids, rng):
    a, b, c = vectors(rng, 3, 2)
    slots = torch.tensor([1, 2])
    text = tiny.encode_text(ids, Prompts((a, b, c), slots)).pooled
    image = tiny.encode_image(images, Prompts((a, b, c), None)).pooled
    others = {
        "shifted": tiny.encode_text(ids, Prompts((a, b, c), slots + 1)).pooled,
        "layers swapped": tiny.encode_text(ids, Prompts((a, c, b), slots)).pooled,
        "vectors swapped": tiny.encode_text(ids, Prompts((a, b, c), slots.flip(0))).pooled,
        "shallower": tiny.encode_text(ids, Prompts((a, b), slots)).pooled,
    }
    for what, other in others.items():
        assert not torch.allclose(text, other, atol=1e-3), what
    assert not torch.allclose(image, tiny.encode_image(images, Prompts((a, c, b), None)).pooled, atol=1e-3)
    assert not torch.allclose(image, tiny.encode_image(images, Prompts((b, a, c), None)).pooled, atol=1e-3)


def test_cut_text_with_prompts_equals_the_whole_context(tiny, ids, rng):
    layers = vectors(rng, 3, 3, 3)
    slots = torch.tensor([1, 2, 3])
    pooled, _ = reference.prompted_text(tiny.state_dict(), ids, LAYERS, HEADS, per_row(layers, 3), [[1, 2, 3]] * 3)
    torch.testing.assert_close(tiny.encode_text(ids, Prompts(layers, slots)).pooled, pooled, **CLOSE)
    alone = torch.cat(
        [tiny.encode_text(ids[i : i + 1], Prompts(tuple(x[i] for x in layers), slots)).pooled for i in range(3)]
    )
    torch.testing.assert_close(alone, pooled, **CLOSE)


def test_gradients_reach_prompts_of_every_layer(tiny, images, ids, rng):
    tiny.requires_grad_(False)
    layers = tuple(x.requires_grad_() for x in vectors(rng, LAYERS, 2))
    tiny.encode_image(images, Prompts(layers, None)).pooled.sum().backward()
    image_grads = [x.grad.clone() for x in layers]
    weights = tiny.state_dict()
    again = [x.detach().clone().requires_grad_() for x in layers]
    reference.prompted_image(weights, images, LAYERS, HEADS, per_row(again, 3))[0].sum().backward()
    for found, expected in zip(image_grads, again, strict=True):
        assert found.abs().sum() > 0
        torch.testing.assert_close(found, expected.grad, atol=1e-4, rtol=1e-4)
    text = [x.detach().clone().requires_grad_() for x in layers]
    tiny.encode_text(ids, Prompts(tuple(text), torch.tensor([2, 3]))).pooled.sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in text)


def test_fp32_prompts_enter_a_half_precision_model(tiny, images, ids, rng):
    clip.convert_weights(tiny, torch.bfloat16)
    layers = tuple(x.requires_grad_() for x in vectors(rng, 2, 2))
    image = tiny.encode_image(images, Prompts(layers, None))
    text = tiny.encode_text(ids, Prompts(layers, torch.tensor([1, 2])))
    assert image.pooled.dtype == text.pooled.dtype == torch.bfloat16
    (image.pooled.float().sum() + text.pooled.float().sum()).backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 for x in layers)


@pytest.mark.parametrize("slots", [torch.tensor([0, 3]), torch.tensor([[0, 3], [2, 1]])])
@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 4)])
def test_overwrite_against_a_loop_with_gradients(rng, slots, shape):
    x = torch.randn(2, 5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    values = torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    out = clip.overwrite(x, slots, values)
    expected = before.clone()
    for row in range(2):
        for j in range(2):
            expected[row, slots.expand(2, 2)[row, j]] = values.detach().expand(2, 2, 4)[row, j]
    assert torch.equal(out, expected)
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(lambda a, b: clip.overwrite(a, slots, b), (x, values))


def test_overwrite_names_wrong_shapes():
    x = torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match=r"values of shape \(3, 4\)"):
        clip.overwrite(x, torch.tensor([1, 2]), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\(3, 2\).*2 rows"):
        clip.overwrite(x, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "0 layers"),
        (("ok",) * (LAYERS + 1), f"{LAYERS + 1} layers; expected 1 to {LAYERS}"),
        (("narrow",), "63"),
        (("ok", "longer"), r"layer 1 of shape \(3, 64\)"),
        (("rows",), r"\(2, 2, 64\).*\(3, 2, 64\)"),
        (("flat",), r"\(64,\)"),
        ("tensor", "tuple"),
    ],
)
def test_wrong_prompts_are_named(tiny, images, ids, layers, message):
    shapes = {"ok": (2, 64), "narrow": (2, 63), "longer": (3, 64), "rows": (2, 2, 64), "flat": (64,)}
    made = torch.zeros(2, 64) if layers == "tensor" else tuple(torch.zeros(shapes[name]) for name in layers)
    with pytest.raises(ValueError, match=message):
        tiny.encode_image(images, Prompts(made, None))
    with pytest.raises(ValueError, match=message):
        tiny.encode_text(ids, Prompts(made, torch.tensor([1, 2])))


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (None, "need slots"),
        (torch.tensor([1, 1]), "repeat"),
        (torch.tensor([-1, 2]), "negative"),
        (torch.tensor([2, 8]), "end-of-text"),
        (torch.tensor([2, 77]), "end-of-text"),
        (torch.tensor([1, 2, 3]), r"\(3,\); expected \(2,\) or \(3, 2\)"),
        (torch.tensor([1.0, 2.0]), "float"),
        (torch.tensor([[1, 2], [1, 2], [2, 2]]), "repeat"),
    ],
)
def test_wrong_slots_are_named(tiny, ids, slots, message):
    assert ids.argmax(-1).min() == 8
    with pytest.raises(ValueError, match=message):
        tiny.encode_text(ids, Prompts((torch.zeros(2, 64),), slots))


def test_misuse_is_named(tiny, images, ids):
    one = Prompts((torch.zeros(1, 64),), torch.tensor([5]))
    with pytest.raises(ValueError, match="slots must be None"):
        tiny.encode_image(images, one)
    with pytest.raises(ValueError, match="label tokens have 2 layers"):
        tiny.encode_text(ids, labels=Prompts((torch.zeros(1, 64),) * 2, torch.tensor([5])))
    with pytest.raises(ValueError, match="deep prompts need slots"):
        tiny.transformer(torch.zeros(1, 3, 64), prompts=Prompts((torch.zeros(1, 64),) * 2, None))
    with pytest.raises(ValueError, match="image tokens"):
        tiny.visual.encode(torch.zeros(2, 5, 63))


def test_vision_prompts_that_enter_late(tiny, images, rng):
    """Nothing is there before the first block that has vectors; text has its vectors from the start."""
    late, last = vectors(rng, 2, 3)
    prompts = Prompts((*[None] * (LAYERS - 2), late, last), None)
    x = tiny.visual.ln_pre(tiny.visual.embed(images))
    for i, block in enumerate(tiny.visual.blocks):
        if i >= LAYERS - 2:
            vectors_here = (late if i == LAYERS - 2 else last).expand(len(x), -1, -1)
            x = torch.cat([x if i == LAYERS - 2 else x[:, :-3], vectors_here], dim=1)
        x = block(x)
    expected = tiny.visual.ln_post(x) @ tiny.visual.proj
    found = tiny.encode_image(images, prompts)
    torch.testing.assert_close(found.tokens, expected, **CLOSE)
    torch.testing.assert_close(found.pooled, expected[:, 0], **CLOSE)
    with pytest.raises(ValueError, match="layer 0 is None"):
        tiny.encode_image(images, Prompts((None, None), None))


def test_a_layer_left_out_keeps_what_the_block_before_made(tiny, ids, rng):
    """None at the layers between: only the input and the last block are prompted."""
    first, third = vectors(rng, 2, 3)
    slots, last = torch.tensor([1, 2, 3]), LAYERS - 1
    found = tiny.encode_text(ids, Prompts((first, *[None] * (last - 1), third), slots))
    x = clip.overwrite(tiny.token_embedding(ids), slots, first) + tiny.positional_embedding[: ids.shape[1]]
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu_(1)
    for i, block in enumerate(tiny.transformer.resblocks):
        x = block(clip.overwrite(x, slots, third) if i == last else x, mask)
    expected = (tiny.ln_final(x) @ tiny.text_projection)[torch.arange(len(ids)), ids.argmax(-1)]
    torch.testing.assert_close(found.pooled, expected, **CLOSE)
    with pytest.raises(ValueError, match="layer 0 is None"):
        tiny.encode_text(ids, Prompts((None, third), slots))


@pytest.mark.parametrize("own_rows", [False, True])
def test_groups_of_equal_length_change_nothing(tiny, rng, monkeypatch, own_rows):
    """Sentences in random order of length, every length a group of its own, against all in one group."""
    texts = [f"X X X {'big ' * (k % 4)}cat" for k in (3, 0, 2, 1, 1, 3, 0)]
    ids = clip.tokenize(texts, context_length=24, vocab_size=tiny.vocab_size)
    slots = torch.tensor([1, 2, 3])
    shape = (len(ids), 3) if own_rows else (3,)
    found = {}
    for cost in (0, 10**9):
        monkeypatch.setattr("clip.text_plan.GROUP_COST", {True: cost, False: cost})
        layers = tuple(v.requires_grad_() for v in vectors(torch.Generator().manual_seed(5), 2, *shape))
        text = tiny.encode_text(ids, Prompts(layers, slots.expand(len(ids), 3) if own_rows else slots))
        inside = (torch.arange(ids.shape[1]) <= ids.argmax(-1)[:, None])[:, : text.tokens.shape[1]]
        weight = torch.randn(text.tokens.shape, generator=torch.Generator().manual_seed(6))
        (text.tokens * weight)[inside].sum().add(text.pooled.pow(2).sum()).backward()
        found[cost] = (text.pooled, text.tokens[inside], *(layer.grad for layer in layers))
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one, other, **CLOSE)


def splits(items):
    """All ways to cut a list into runs."""
    if not items:
        yield []
    for k in range(1, len(items) + 1):
        for rest in splits(items[k:]):
            yield [items[:k], *rest]


@pytest.mark.parametrize("group_cost", [0, 5, 20, 1000])
def test_length_groups_are_the_cheapest(rng, group_cost):
    for _ in range(20):
        ends = torch.randint(3, 12, (8,), generator=rng).tolist()
        groups = length_groups(ends, group_cost)
        assert sorted(row for members, _ in groups for row in members) == list(range(8))
        assert all(end == max(ends[row] for row in members) for members, end in groups)
        cost = sum(len(members) * (end + 1) + group_cost for members, end in groups)
        assert cost == min(sum(len(run) * (run[-1] + 1) + group_cost for run in runs) for runs in splits(sorted(ends)))
