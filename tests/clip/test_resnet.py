"""The ResNet tower: attention pool against torch's own attention, tokens, refusal of prompts."""

import pytest
import torch
import torch.nn.functional as F

import clip
from clip import Prompts


@pytest.fixture
def pixels(rng):
    return torch.randn(2, 3, 64, 64, generator=rng)


def test_pool_equals_torch_attention_with_every_position_as_query(tiny_resnet, pixels):
    pool = tiny_resnet.visual.attnpool
    with torch.no_grad():
        tokens = tiny_resnet.visual.embed(pixels)
        found = tiny_resnet.encode_image(pixels)
        x = tokens.transpose(0, 1)
        expected, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            tokens.shape[-1],
            pool.heads,
            None,
            torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
            None,
            None,
            False,
            0.0,
            pool.c_proj.weight,
            pool.c_proj.bias,
            use_separate_proj_weight=True,
            q_proj_weight=pool.q_proj.weight,
            k_proj_weight=pool.k_proj.weight,
            v_proj_weight=pool.v_proj.weight,
            need_weights=False,
        )
    assert found.tokens.shape == (2, 5, 32)
    torch.testing.assert_close(found.tokens, expected.transpose(0, 1), atol=1e-6, rtol=1e-5)
    assert torch.equal(found.pooled, found.tokens[:, 0])


def test_embedding_starts_with_the_mean(tiny_resnet, pixels):
    tokens = tiny_resnet.visual.embed(pixels) - tiny_resnet.visual.attnpool.positional_embedding
    assert tokens.shape == (2, 5, tiny_resnet.visual.width)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))


def test_prompts_are_refused(tiny_resnet, pixels):
    with pytest.raises(ValueError, match="takes no prompts"):
        tiny_resnet.encode_image(pixels, Prompts((torch.zeros(1, 256),), None))
    with pytest.raises(ValueError, match="image tokens"):
        tiny_resnet.visual.encode(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="64, 64"):
        tiny_resnet.encode_image(pixels[..., :32])


def test_text_prompts_work_beside_a_resnet(tiny_resnet, ids):
    plain = tiny_resnet.encode_text(ids).pooled
    prompted = tiny_resnet.encode_text(ids, Prompts((torch.ones(2, 64),), torch.tensor([1, 2]))).pooled
    assert not torch.allclose(plain, prompted, atol=1e-3)


def test_it_trains(tiny_resnet, pixels, ids):
    model = tiny_resnet.train()
    model(pixels, ids[:2])[0].sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters())


def test_residual_branches_start_at_zero():
    model = clip.CLIP(32, 64, (1, 1, 1, 1), 8, None, 16, 600, 64, 1, 1)
    norms = [m.bn3.weight for m in model.modules() if hasattr(m, "bn3") and hasattr(m, "downsample")]
    assert len(norms) == 4
    assert all(w.abs().sum() == 0 for w in norms)
    assert model.visual.attnpool.q_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_half_precision(tiny_resnet, pixels):
    full = tiny_resnet.encode_image(pixels).pooled
    clip.convert_weights(tiny_resnet, torch.bfloat16)
    half = tiny_resnet.encode_image(pixels).pooled
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(full, half.float()).min() > 0.99
