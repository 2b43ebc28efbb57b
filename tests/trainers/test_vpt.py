"""VPT against plain forwards of one image at a time."""

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
)

import clip
from trainers.vpt import VPT, VisualPromptLearner

LABELS = torch.tensor([0, 3, 1])
TEMPLATE = "a drawing of a {}, in ink."


def build(model, names, **options):
    torch.manual_seed(1)
    return trainer_of(VPT, model, names, template=TEMPLATE, **{"N_CTX_VISION": 3, "PROMPT_DEPTH_VISION": 3, **options})


def reference_logits(model, learner, images, names, prepare=lambda layer: layer):
    sentences = [TEMPLATE.format(name.replace("_", " ")) for name in names]
    texts = [text_feature(model, sentence, []) for sentence in sentences]
    features = [image_feature(model, image, [prepare(layer[0]) for layer in learner.vision]) for image in images]
    return logits_of(model, features, texts)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_logits_loss_and_gradients(tiny_clip, names, images, depth):
    trainer = build(tiny_clip, names, PROMPT_DEPTH_VISION=depth)
    learner = trainer.model.learner
    expected = reference_logits(tiny_clip, learner, images, names)
    found = trainer.model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce"}
    torch.testing.assert_close(terms["ce"], cross_entropy(expected, LABELS), rtol=1e-4, atol=0)
    assert_same_gradients(terms["ce"], cross_entropy(expected, LABELS), learner)


class PerSampleHalf(torch.autograd.Function):
    """Rounds a value to fp16 on the way in and its gradient on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.float16).to(torch.float32)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(torch.float16).to(torch.float32)


def test_half_prompts_round_every_image_on_its_own(tiny_clip, names, images):
    trainer = build(tiny_clip, names, HALF_PROMPTS=True)
    learner = trainer.model.learner
    expected = reference_logits(tiny_clip, learner, images, names, prepare=PerSampleHalf.apply)
    found = trainer.model(images).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_same_gradients(cross_entropy(found, LABELS), cross_entropy(expected, LABELS), learner, rtol=1e-3)
    with torch.no_grad():
        exact = build(tiny_clip, names).model(images).logits
        assert float((exact - found).abs().max()) > 3e-5
    tiny = torch.autograd.grad(1e-9 * trainer.model(images).logits.sum(), list(learner.parameters()))
    assert all(not gradient.any() for gradient in tiny)  # gradients below what fp16 holds are lost


def test_text_is_encoded_once_per_run(tiny_clip, names, images, monkeypatch):
    trainer, calls = build(tiny_clip, names), []
    encode = clip.CLIP.encode_text
    monkeypatch.setattr(clip.CLIP, "encode_text", lambda *args, **more: calls.append(1) or encode(*args, **more))
    for _ in range(3):
        trainer.losses({"img": images, "label": LABELS})
    assert not calls


def test_the_order_of_the_prompts_of_a_layer_does_not_matter(tiny_clip, names, images):
    trainer = build(tiny_clip, names)
    with torch.no_grad():
        before = trainer.model(images).logits
        for layer in trainer.model.learner.vision:
            layer.copy_(layer[:, [2, 0, 1]].clone())
            torch.testing.assert_close(trainer.model(images).logits, before, rtol=0, atol=2e-4)


def test_a_deep_prompt_enters_at_its_block_and_replaces_what_was_there(tiny_clip, names, images):
    """Perturbing layer k leaves the inputs of blocks < k as they are; what block k - 1 left at the slots is lost."""
    trainer = build(tiny_clip, names, PROMPT_DEPTH_VISION=4)
    learner, blocks = trainer.model.learner, tiny_clip.visual.transformer.resblocks

    def inputs():
        seen, handles = [], []
        for block in blocks:
            handles.append(block.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())))
        with torch.no_grad():
            trainer.model(images)
        for handle in handles:
            handle.remove()
        return seen

    before = inputs()
    with torch.no_grad():
        learner.vision[2].add_(1)
    after = inputs()
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, True, False, False]
    assert torch.equal(before[2][:, :-3], after[2][:, :-3])

    with torch.no_grad():
        logits = trainer.model(images).logits
        noise = blocks[1].register_forward_hook(lambda _, args, out: torch.cat([out[:, :-3], out[:, -3:] + 5], dim=1))
        disturbed = trainer.model(images).logits
        noise.remove()
    torch.testing.assert_close(disturbed, logits, rtol=0, atol=0)


def test_shapes_start_and_counts(tiny_clip, names):
    torch.manual_seed(0)
    learner = VisualPromptLearner(tiny_clip, torch.zeros(len(names), 32), n_ctx=8, depth=4)
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {
        f"vision.{k}": (1, 8, 64) for k in range(4)
    }
    values = torch.cat([value.detach().flatten() for value in learner.parameters()])
    assert abs(float(values.std()) - 0.02) < 0.002
    assert abs(float(values.mean())) < 0.002
    with torch.device("meta"):
        base = clip.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    learner = VisualPromptLearner(base, torch.zeros(2, 512), n_ctx=8, depth=12)
    assert sum(p.numel() for p in learner.parameters()) == 73_728


def test_bad_options(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)VPT.N_CTX_VISION is 0.*VPT.PROMPT_DEPTH_VISION is -1"):
        build(tiny_clip, names, N_CTX_VISION=0, PROMPT_DEPTH_VISION=-1)
    with pytest.raises(ValueError, match="visual prompts of depth 5 in a tower of 4 blocks"):
        build(tiny_clip, names, PROMPT_DEPTH_VISION=5)
    resnet = clip.CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 2048, 48, 2, 1)
    with pytest.raises(ValueError, match="vision transformer, but the image tower is a ModifiedResNet"):
        build(resnet, names)
