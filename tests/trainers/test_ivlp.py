"""IVLP and deep language prompting against plain forwards of one image and one sentence at a time."""

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
from trainers.ivlp import IVLP
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import init_context

LABELS = torch.tensor([0, 3, 1])


def build(model, names, **options):
    torch.manual_seed(1)
    short = {"N_CTX_TEXT": 2, "N_CTX_VISION": 3, "PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 4}
    return trainer_of(IVLP, model, names, **{**short, **options})


def reference_logits(model, learner, images, names, words, prepare=lambda layer: layer):
    """`words`: what stands in the sentence from its first token to the name; the context replaces its first tokens."""
    layers = [learner.ctx[0], *(prepare(layer[0]) for layer in learner.deep)]
    texts = [text_feature(model, f"{words} {name.replace('_', ' ')}.", layers) for name in names]
    visual = [layer[0] for layer in learner.vision]
    features = [image_feature(model, image, [prepare(layer) for layer in visual]) for image in images]
    return logits_of(model, features, texts)


CASES = {
    "released, 2 + 3": ({}, "X X of a"),
    "rest dropped": ({"KEEP_REST": False}, "X X"),
    "4 words": ({"N_CTX_TEXT": 4}, "X X X X"),
    "random context": ({"N_CTX_TEXT": 5, "CTX_INIT": ""}, "X X X X X"),
    "input only": ({"PROMPT_DEPTH_TEXT": 1, "PROMPT_DEPTH_VISION": 1}, "X X of a"),
    "deeper text": ({"PROMPT_DEPTH_TEXT": 4, "PROMPT_DEPTH_VISION": 2}, "X X of a"),
    "language only": ({"PROMPT_DEPTH_VISION": 0}, "X X of a"),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(tiny_clip, names, images, case):
    options, words = CASES[case]
    words = words.replace("X", "a")  # the words below the context have no meaning, only their number
    trainer = build(tiny_clip, names, **options)
    expected = reference_logits(tiny_clip, trainer.model.learner, images, names, words)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce"}
    torch.testing.assert_close(trainer.model(images).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["ce"], cross_entropy(expected, LABELS), rtol=1e-4, atol=0)
    assert_same_gradients(terms["ce"], cross_entropy(expected, LABELS), trainer.model.learner)


def test_half_prompts_round_deep_and_visual_prompts_but_not_the_context(tiny_clip, names, images):
    trainer = build(tiny_clip, names, HALF_PROMPTS=True)
    expected = reference_logits(
        tiny_clip, trainer.model.learner, images, names, "a a of a", prepare=lambda layer: layer.half().float()
    )
    torch.testing.assert_close(trainer.model(images).logits, expected, rtol=0, atol=1e-5)
    trainer.model.learner.half_prompts = False
    assert float((trainer.model(images).logits - expected).detach().abs().max()) > 3e-5


def test_language_prompts_leave_the_image_tower_alone(tiny_clip, names, images):
    model = build(tiny_clip, names, PROMPT_DEPTH_VISION=0).model
    assert torch.equal(model.encode_image(images).pooled, tiny_clip.encode_image(images).pooled)
    resnet = clip.CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 2048, 48, 2, 3).eval().requires_grad_(False)
    assert build(resnet, names, PROMPT_DEPTH_VISION=0).model(images).logits.shape == (3, 5)
    with pytest.raises(ValueError, match="vision transformer, but the image tower is a ModifiedResNet"):
        build(resnet, names)


def test_starting_from_words_equals_the_plain_sentence(tiny_clip, names, images):
    """Four words at the input only: at the start the text features are those of "a photo of a NAME."."""
    learner = MultiModeLearner(tiny_clip, names, n_ctx=4, depth=1, init="a photo of a", coupled=False, vision_depth=0)
    found = tiny_clip.encode_text(*learner.text_prompts()).pooled
    plain = torch.stack([text_feature(tiny_clip, f"a photo of a {n.replace('_', ' ')}.", []) for n in names])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_the_order_of_textual_prompts_matters(tiny_clip, names, images):
    model = build(tiny_clip, names).model
    with torch.no_grad():
        before = model(images).logits
        model.learner.ctx.copy_(model.learner.ctx[:, [1, 0]].clone())
        assert float((model(images).logits - before).abs().max()) > 1e-3


def test_a_deep_text_prompt_enters_at_its_block(tiny_clip, names):
    model, blocks, seen = build(tiny_clip, ["cat", "dog"]).model, tiny_clip.transformer.resblocks, []
    handles = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for block in blocks]
    with torch.no_grad():
        model.encode_text()
        model.learner.deep[1].add_(1)
        model.encode_text()
    for handle in handles:
        handle.remove()
    before, after = seen[:4], seen[4:]
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, True, False, False]
    untouched = [0, *range(3, before[2].shape[1])]
    assert torch.equal(before[2][:, untouched], after[2][:, untouched])


def test_shapes_start_and_counts(tiny_clip, names):
    torch.manual_seed(0)
    sizes = {"n_ctx": 2, "depth": 3, "init": "a photo of a", "coupled": False}
    learner = MultiModeLearner(tiny_clip, names, **sizes, vision_n_ctx=5, vision_depth=4)
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {
        "ctx": (1, 2, 48),
        **{f"deep.{k}": (1, 2, 48) for k in range(2)},
        **{f"vision.{k}": (1, 5, 64) for k in range(4)},
    }
    torch.testing.assert_close(learner.ctx[0], init_context(tiny_clip, "a photo", 2), rtol=0, atol=0)
    random = torch.cat([value.flatten() for value in (*learner.deep, *learner.vision)])
    assert abs(float(random.detach().std()) - 0.02) < 0.002

    with torch.device("meta"):
        base = clip.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)

    def count(n, depth, vision_depth):
        learner = MultiModeLearner(base, ["cat"], n_ctx=n, depth=depth, coupled=False, vision_depth=vision_depth)
        return sum(p.numel() for p in learner.parameters())

    assert (count(2, 12, 12), count(4, 9, 9), count(4, 12, 0)) == (30_720, 46_080, 24_576)


def test_bad_options(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)IVLP.N_CTX_TEXT is 0.*IVLP.PROMPT_DEPTH_VISION is -1, expected 0"):
        build(tiny_clip, names, N_CTX_TEXT=0, PROMPT_DEPTH_VISION=-1)
    with pytest.raises(ValueError, match="visual prompts of depth 5 in a tower of 4 blocks"):
        build(tiny_clip, names, PROMPT_DEPTH_VISION=5)
    with pytest.raises(ValueError, match="text prompts of depth 5 in a tower of 4 blocks"):
        build(tiny_clip, names, PROMPT_DEPTH_TEXT=5)
    with pytest.raises(ValueError, match="N_CTX is 5: lower N_CTX, use a longer phrase, or leave CTX_INIT empty"):
        build(tiny_clip, names, N_CTX_TEXT=5, KEEP_REST=False)
    with pytest.raises(ValueError, match="length 3 and depth 3 cannot be coupled with textual ones of length 2"):
        MultiModeLearner(tiny_clip, names, n_ctx=2, depth=3, vision_n_ctx=3)
