"""The same numbers on a CUDA device, in fp32 and in half precision."""

import pytest
import torch
import torch.nn.functional as F

import clip
from clip import Prompts

pytestmark = pytest.mark.gpu


@pytest.fixture
def prompts(rng):
    return tuple(torch.randn(2, 64, generator=rng) for _ in range(3))


def test_fp32_equals_the_cpu_with_gradients(tiny, images, ids, prompts):
    slots, grads, features = torch.tensor([1, 2]), [], []
    for device in ("cpu", "cuda"):
        model = tiny.to(device)
        layers = tuple(x.to(device).requires_grad_() for x in prompts)
        image = model.encode_image(images.to(device), Prompts(layers, None)).pooled
        text = model.encode_text(ids.to(device), Prompts(layers, slots)).pooled
        (image.sum() + text.sum()).backward()
        features.append((image.cpu(), text.cpu()))
        grads.append([x.grad.cpu() for x in layers])
    torch.testing.assert_close(features[0], features[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(tiny, images, ids, prompts, dtype):
    model = tiny.cuda()
    layers = tuple(x.cuda().requires_grad_() for x in prompts)
    full = model.encode_image(images.cuda(), Prompts(layers, None)).pooled
    clip.convert_weights(model, dtype)
    image = model.encode_image(images.cuda(), Prompts(layers, None)).pooled
    text = model.encode_text(ids.cuda(), Prompts(layers, torch.tensor([1, 2]))).pooled
    assert image.dtype == text.dtype == dtype
    assert F.cosine_similarity(image.float(), full).min() > 0.99
    (image.float().sum() + text.float().sum()).backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in layers)


def test_wrong_slots_are_a_clear_error_and_not_a_device_fault(tiny, ids, prompts):
    model = tiny.cuda()
    with pytest.raises(ValueError, match="end-of-text"):
        model.encode_text(ids.cuda(), Prompts((prompts[0].cuda(),), torch.tensor([1, 500]).cuda()))
    with pytest.raises(ValueError, match="vocab_size=1000"):
        model.encode_text(clip.tokenize("a cat").cuda())
