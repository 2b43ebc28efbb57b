"""MMRL against plain towers with the tokens put into every sequence, and the options."""

import copy

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy, logits_of, trainer_of, unit

import clip
from tests.tolerance import assert_close
from trainers.mmrl import MMRL

LABELS = torch.tensor([0, 3, 1])


def build(model, names, **options):
    torch.manual_seed(1)
    sizes = {"LAYER": 3, "N_REP_TOKENS": 3, "REP_DIM": 12, **options}
    return trainer_of(MMRL, copy.deepcopy(model), names, **sizes)


def with_tokens(block, x, before, tokens, mask=None):
    """One block on a sequence (L, d) without tokens that puts (K, d) at its place `before`: (L + K, d)."""
    return block(torch.cat([x[:before], tokens, x[before:]])[None], mask)[0]


def reference(model, learner, images, names, place=1):
    """Class features, token features and text features; tokens stand behind the class or start token, as published.

    `place`: of the tokens among the words; 0 is a mistake.
    """
    first, count, tokens = learner.before, len(learner.tokens), learner.tokens
    visual, of_class, of_tokens, texts = model.visual, [], [], []
    for image in images:
        x = torch.cat([visual.class_embedding[None], visual.conv1(image[None])[0].flatten(1).T])
        x = visual.ln_pre(x + visual.positional_embedding)
        for i, block in enumerate(visual.blocks):
            if i < first:
                x = block(x[None])[0]
            else:
                x = torch.cat([x[:1], x[1 + count :]]) if i > first else x
                x = with_tokens(block, x, 1, learner.vision_maps[i - first](tokens))
        of_class.append(visual.ln_post(x[0]) @ visual.proj)
        of_tokens.append(sum(visual.ln_post(x[k]) @ learner.proj for k in range(1, 1 + count)) / count)
    for name in names:
        ids = clip.tokenize([f"a photo of a {name.replace('_', ' ')}."], vocab_size=model.vocab_size)[0]
        x = model.token_embedding.weight[ids] + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if i < first:
                x = block(x[None], torch.full((len(x), len(x)), -torch.inf).triu(1))[0]
            else:
                x = torch.cat([x[:place], x[place + count :]]) if i > first else x
                mask = torch.full((len(x) + count,) * 2, -torch.inf).triu(1)
                x = with_tokens(block, x, place, learner.text_maps[f"text-{i}-attn"].project(tokens), mask)
        texts.append(model.ln_final(x[ids.argmax() + count]) @ model.text_projection)
    return of_class, of_tokens, texts


def mean_distance(found, known):
    return 1 - sum(unit(a) @ unit(b) for a, b in zip(found, known)) / len(found)


@pytest.mark.parametrize("layer", [1, 3, 4])
def test_logits_losses_and_gradients(tiny_clip, names, images, layer):
    trainer = build(tiny_clip, names, LAYER=layer, REG_WEIGHT=2.0)
    of_class, of_tokens, texts = reference(tiny_clip, trainer.model.learner, images, names)
    ours, theirs = logits_of(tiny_clip, of_class, texts), logits_of(tiny_clip, of_tokens, texts)
    assert_close(trainer.model(images).logits, 0.7 * ours + 0.3 * theirs)
    plain = tiny_clip.encode_image(images).pooled
    words = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    known = tiny_clip.encode_text(clip.tokenize(words, vocab_size=tiny_clip.vocab_size)).pooled
    expected = {
        "ce": 0.7 * cross_entropy(ours, LABELS),
        "ce_tokens": 0.3 * cross_entropy(theirs, LABELS),
        "image": 2 * mean_distance(of_class, plain),
        "text": 2 * mean_distance(texts, known),
    }
    terms = trainer.losses({"img": images, "label": LABELS})
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=2e-5, atol=2e-5)  # 1 - cosine cancels
    assert_same_gradients(sum(terms.values()), sum(expected.values()), trainer.model.learner)


def test_the_class_feature_answers_alone_on_other_classes(tiny_clip, names, images):
    trainer = build(tiny_clip, names)
    of_class, of_tokens, texts = reference(tiny_clip, trainer.model.learner, images, names)
    ours, theirs = logits_of(tiny_clip, of_class, texts), logits_of(tiny_clip, of_tokens, texts)
    trainer.other_classes = True
    assert_close(trainer.model(images).logits, ours)
    both = build(tiny_clip, names, INFERENCE="both")
    both.other_classes = True
    assert_close(both.model(images).logits, 0.7 * ours + 0.3 * theirs)
    assert_close(build(tiny_clip, names, INFERENCE="class").model(images).logits, ours)


def test_the_start_token_does_not_see_the_tokens(tiny_clip, names, images):
    model = build(tiny_clip, names).model
    right, wrong = (reference(tiny_clip, model.learner, images[:1], names, place)[2] for place in (1, 0))
    assert_close(model.encode_text().pooled, torch.stack(right))
    assert not torch.allclose(torch.stack(wrong), torch.stack(right), atol=1e-3)


def test_number_of_parameters(wide_clip):
    learner = trainer_of(MMRL, copy.deepcopy(wide_clip), ["cat"], LAYER=1).model.learner
    maps = 12 * (512 * 512 + 512) + (512 * 64 + 64)
    assert sum(p.numel() for p in learner.parameters()) == 5 * 512 + maps + 64 * 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"LAYER": 5}, "TRAINER.MMRL.LAYER is 5, but the shallower tower has 4 blocks"),
        ({"LAYER": 0}, "TRAINER.MMRL.LAYER is 0, expected 1 or more"),
        ({"ALPHA": 1.5}, "ALPHA is 1.5, expected a number from 0 to 1"),
        ({"INFERENCE": "tokens"}, "INFERENCE is 'tokens', expected one of auto, both, class"),
    ],
)
def test_options_that_do_not_exist(tiny_clip, names, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_clip, names, **options)
