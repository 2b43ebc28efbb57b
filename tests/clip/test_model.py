"""The plain forward: equality with an independent CLIP, text cut, gradients, casts, bad input."""

import math

import clip_reference as reference
import pytest
import torch
import torch.nn.functional as F
from clip_reference import HEADS, LAYERS, VOCAB, WIDTH

import clip
from clip import layers
from clip.layers import QuickGELU
from clip.model import convert_weights


@pytest.mark.parametrize("grad", [False, True])
def test_without_prompts_it_is_plain_clip_to_the_last_bit(tiny, images, ids, grad):
    weights = tiny.state_dict()
    short = ids[:, : int(ids.argmax(-1).max()) + 1]
    with torch.set_grad_enabled(grad):
        image, text = tiny.encode_image(images), tiny.encode_text(ids)
    assert torch.equal(image.pooled, reference.plain_image(weights, images, LAYERS, HEADS))
    assert torch.equal(text.pooled, reference.plain_text(weights, short, LAYERS, HEADS))


def test_gelu_by_argument(make_clip, images, ids):
    model = make_clip(quick_gelu=False)
    weights = model.state_dict()
    with torch.no_grad():
        assert torch.equal(
            model.encode_image(images).pooled, reference.plain_image(weights, images, LAYERS, HEADS, F.gelu)
        )
        quick = reference.plain_image(weights, images, LAYERS, HEADS)
    assert not torch.allclose(model.encode_image(images).pooled, quick, atol=1e-4)


def test_tokens_hold_every_position_and_the_pooled_one(tiny, images, ids):
    image, text = tiny.encode_image(images), tiny.encode_text(ids)
    assert image.tokens.shape == (3, 17, 32)
    torch.testing.assert_close(image.tokens[:, 0], image.pooled)
    end = ids.argmax(-1)
    assert text.tokens.shape == (3, int(end.max()) + 1, 32)
    torch.testing.assert_close(text.tokens[torch.arange(3), end], text.pooled)


def test_text_cut_equals_all_positions(tiny, ids):
    """The longest text decides the cut; every position that is left equals the one of the whole context."""
    full = ids.clone()
    last = torch.zeros(1, 24, dtype=torch.int64)
    last[0, 0], last[0, -1] = VOCAB - 2, VOCAB - 1  # ends at the last position: nothing is cut
    whole = tiny.encode_text(torch.cat([full, last]))
    cut = tiny.encode_text(ids)
    assert cut.tokens.shape[1] < whole.tokens.shape[1] == 24
    torch.testing.assert_close(cut.pooled, whole.pooled[:3], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cut.tokens, whole.tokens[:3, : cut.tokens.shape[1]], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        cut.pooled, reference.plain_text(tiny.state_dict(), ids, LAYERS, HEADS), atol=1e-6, rtol=1e-6
    )


def test_forward_gives_scaled_cosines(tiny, images, ids):
    with torch.no_grad():
        per_image, per_text = tiny(images, ids)
        a, b = tiny.encode_image(images).pooled, tiny.encode_text(ids).pooled
    for i in range(3):
        for j in range(3):
            cosine = (a[i] @ b[j]) / (a[i].norm() * b[j].norm())
            assert per_image[i, j].item() == pytest.approx(cosine.item() / 0.07, abs=1e-4)
    assert torch.equal(per_text, per_image.t())


def test_embed_then_encode_takes_fewer_patches_and_repeated_rows(tiny, images):
    tokens = tiny.visual.embed(images)
    weights = tiny.state_dict()
    torch.testing.assert_close(tokens, reference.patches(weights, images))
    keep = torch.tensor([0, 3, 5, 16])
    kept = tiny.visual.encode(tokens[:, keep])
    x = reference.norm(reference.patches(weights, images)[:, keep], weights, "visual.ln_pre")
    for i in range(LAYERS):
        x = reference.block(x, weights, f"visual.transformer.resblocks.{i}", HEADS, reference.quick_gelu, False)
    torch.testing.assert_close(kept.tokens, reference.norm(x, weights, "visual.ln_post") @ weights["visual.proj"])
    repeated = tiny.visual.encode(tokens.repeat_interleave(2, 0))
    torch.testing.assert_close(repeated.pooled, tiny.encode_image(images).pooled.repeat_interleave(2, 0))


def test_trains_from_scratch_and_every_parameter_gets_a_gradient(make_clip, images, ids):
    torch.manual_seed(0)
    model = clip.CLIP(32, 32, 2, WIDTH, 8, 24, VOCAB, WIDTH, 1, 2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        per_image, per_text = model(images, ids)
        target = torch.arange(3)
        loss = F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []


def test_initialisation_has_the_published_scales():
    torch.manual_seed(0)
    model = clip.CLIP(64, 64, 3, 192, 8, 77, 2000, 192, 3, 4)
    block = model.transformer.resblocks[1]
    branch = 192**-0.5 * 8**-0.5
    for weight, std in (
        (model.token_embedding.weight, 0.02),
        (model.positional_embedding, 0.01),
        (block.attn.in_proj_weight, 192**-0.5),
        (block.attn.out_proj.weight, branch),
        (block.mlp.c_fc.weight, 384**-0.5),
        (block.mlp.c_proj.weight, branch),
        (model.text_projection, 192**-0.5),
        (model.visual.positional_embedding, 192**-0.5),
        (model.visual.proj, 192**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.visual.transformer.heads == 3


@pytest.mark.parametrize("masked", ["no", "by a matrix", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_attentions_are_equal_with_gradients(rng, masked, dtype):
    matrix = torch.full((9, 9), -math.inf).triu(1)
    mask = {"no": None, "by a matrix": matrix, "causal": True}[masked]
    results = []
    base = torch.randn(3, 2, 4, 9, 16, generator=rng)
    weight = torch.randn(2, 4, 9, 16, generator=rng)
    for attention in (layers.explicit_attention, layers.attend):
        q, k, v = (part.clone().requires_grad_() for part in base)
        out = attention(q.to(dtype), k.to(dtype), v.to(dtype), mask)
        (out.float() * weight).sum().backward()
        results.append((out.float(), q.grad, k.grad, v.grad))
    with torch.no_grad():
        results.append((layers.attend(*base.to(dtype), mask).float(), *results[0][1:]))
        if masked == "causal":
            assert torch.equal(layers.attention_weights(*base[:2], True), layers.attention_weights(*base[:2], matrix))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_causal_text_has_a_mask_only_behind_shared_beginnings(tiny, ids, rng, monkeypatch):
    attention, seen = torch.nn.functional.scaled_dot_product_attention, []

    def spy(q, k, v, mask, is_causal):
        seen.append((mask is not None, is_causal))
        return attention(q, k, v, mask, is_causal=is_causal)

    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        tiny.encode_text(ids)
    assert set(seen) == {(False, True)}
    assert layers.causal_mask(0, torch.zeros(1, 3, 2)) is True
    assert layers.causal_mask(2, torch.zeros(1, 3, 2)).isneginf().tolist() == [
        [False, False, False, True, True],
        [False, False, False, False, True],
        [False, False, False, False, False],
    ]


def test_explicit_attention_is_taken_for_half_precision_training_on_a_cpu(monkeypatch, rng):
    calls = []
    monkeypatch.setattr(layers, "explicit_attention", lambda q, k, v, mask: calls.append(q.dtype) or q)
    q = torch.randn(1, 1, 2, 4, generator=rng)
    layers.attend(q, q, q)
    layers.attend(q.clone().requires_grad_(), q, q)
    layers.attend(q.bfloat16(), q.bfloat16(), q.bfloat16())
    with torch.no_grad():
        layers.attend(q.bfloat16().requires_grad_(), q.bfloat16(), q.bfloat16())
    assert calls == []
    layers.attend(q.bfloat16().requires_grad_(), q.bfloat16(), q.bfloat16())
    assert calls == [torch.bfloat16]


def test_converted_weights_keep_norms_in_fp32_and_stay_close(tiny, images, ids):
    with torch.no_grad():
        image, text = tiny.encode_image(images), tiny.encode_text(ids)
        convert_weights(tiny, torch.bfloat16)
        assert tiny.dtype == torch.bfloat16
        half_image, half_text = tiny.encode_image(images), tiny.encode_text(ids)
    halves = {n for n, p in tiny.named_parameters() if p.dtype == torch.bfloat16}
    assert {n for n, p in tiny.named_parameters()} - halves == {
        n
        for n, _ in tiny.named_parameters()
        if ".ln_" in n or "embedding" in n or n.startswith("ln_final") or n == "logit_scale"
    }
    for full, half in ((image, half_image), (text, half_text)):
        assert half.pooled.dtype == half.tokens.dtype == torch.bfloat16
        assert F.cosine_similarity(full.pooled, half.pooled.float()).min() > 0.999
    assert tiny(images, ids)[0].dtype == torch.bfloat16
    convert_weights(tiny, torch.float32)
    assert {p.dtype for p in tiny.parameters()} == {torch.float32}


def test_whole_model_half_cast_also_runs(tiny, images, ids):
    tiny.bfloat16()
    assert tiny.encode_image(images).pooled.isfinite().all()
    assert tiny.encode_text(ids).pooled.dtype == torch.bfloat16


def test_layer_norm_computes_in_fp32(rng):
    norm = layers.LayerNorm(64)
    x = 300 * torch.randn(2, 64, generator=rng)  # squares overflow in fp16
    out = norm(x.half())
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), F.layer_norm(x.half().float(), (64,)), atol=2e-3, rtol=2e-3)


def test_autocast_runs_forward_and_backward(tiny, images, ids):
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiny(images, ids)[0].float().pow(2).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 3, 40, 40), "32, 32"), ((3, 1, 32, 32), "3, 32, 32"), ((3, 32, 32), "B, 3")],
)
def test_wrong_images_are_named(tiny, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny.encode_image(torch.zeros(shape))


def test_wrong_ids_are_named(tiny, ids):
    with pytest.raises(ValueError, match="vocab_size=1000"):
        tiny.encode_text(clip.tokenize("a cat"))
    with pytest.raises(ValueError, match="-1"):
        tiny.encode_text(ids - 1)
    with pytest.raises(ValueError, match="integers"):
        tiny.encode_text(ids.float())
    with pytest.raises(ValueError, match="integers"):
        tiny.encode_text(ids[0])
    long = clip.tokenize("cat " * 30, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="at most 24"):
        tiny.encode_text(long)
    wide = clip.tokenize("a cat", vocab_size=VOCAB)  # 77 columns, but a short text
    torch.testing.assert_close(tiny.encode_text(wide).pooled, tiny.encode_text(wide[:, :24]).pooled)


def test_wrong_architectures_are_named(make_clip):
    with pytest.raises(ValueError, match="64 cannot be divided into 5 heads"):
        make_clip(transformer_heads=5)
    with pytest.raises(ValueError, match="vision_patch_size"):
        make_clip(vision_patch_size=None)
    with pytest.raises(ValueError, match="four stages"):
        make_clip(vision_layers=(1, 1), vision_patch_size=None)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_quick_gelu_and_its_derivatives(kind, rng):
    x = (3 * torch.randn(50, generator=rng)).to(kind).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    found, expected = QuickGELU()(x), plain * torch.sigmoid(1.702 * plain)
    assert torch.equal(found, expected)
    for value in (found, expected):
        value.pow(2).sum().backward()
    close = {"atol": 0.1, "rtol": 0.02} if kind == torch.bfloat16 else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(x.grad, plain.grad, **close)
    if kind == torch.float64:
        assert torch.autograd.gradcheck(QuickGELU(), x)
