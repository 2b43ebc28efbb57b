"""ATPrompt against sentences written out one at a time, and where its attributes come from."""

import json

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy, image_feature, logits_of, trainer_of

import clip
from tests.tolerance import assert_close
from trainers.atprompt import RELEASED, ATPrompt, attributes_of

LABELS = torch.tensor([0, 3, 1])


def build(model, names, dataset="Any", **options):
    torch.manual_seed(1)
    return trainer_of(ATPrompt, model, names, dataset=dataset, **options)


def words(model, text):
    ids = clip.tokenize([text], vocab_size=model.vocab_size)[0]
    return model.token_embedding.weight[ids[1 : int(ids.argmax())]]


def sentence(model, parts):
    """Feature of a sentence of rows (k, d), between the start and the end token."""
    ends = clip.tokenize([""], vocab_size=model.vocab_size)[0][:2]
    start, end = model.token_embedding.weight[ends]
    x = torch.cat([start[None], *parts, end[None]])
    x = x + model.positional_embedding[: len(x)]
    mask = torch.full((len(x), len(x)), -torch.inf).triu(1)
    for block in model.transformer.resblocks:
        x = block(x[None], mask)[0]
    return model.ln_final(x[-1]) @ model.text_projection


@pytest.mark.parametrize("attributes", [("color",), ("color", "wingspan range"), ("a", "color", "shape")])
def test_logits_loss_and_gradients(tiny_clip, names, images, attributes):
    trainer = build(tiny_clip, names, ATTRIBUTES=attributes, N_ATT=2, N_CTX=3)
    learner, texts = trainer.model.learner, []
    for name in names:
        parts = [part for a, word in zip(learner.attributes, attributes) for part in (a, words(tiny_clip, word))]
        texts.append(sentence(tiny_clip, [*parts, learner.ctx, words(tiny_clip, f"{name.replace('_', ' ')}.")]))
    expected = logits_of(tiny_clip, [image_feature(tiny_clip, image, []) for image in images], texts)
    assert_close(trainer.model(images).logits, expected, 2e-5)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert list(terms) == ["ce"]
    assert_same_gradients(terms["ce"], cross_entropy(expected, LABELS), learner)
    learner.slots[0] += 1 if learner.slots[0] + 1 not in learner.slots else 2  # a vector in a wrong place
    assert not torch.allclose(trainer.model(images).logits, expected, atol=0.01)


def test_where_the_attributes_come_from(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"Mine": ["fur", "tail length"], "Empty": [""]}))
    assert attributes_of("Mine", ("size",), str(path)) == ["size"]
    assert attributes_of("Mine", (), str(path)) == ["fur", "tail length"]
    assert attributes_of("OxfordFlowers", (), "") == list(RELEASED["OxfordFlowers"])
    assert attributes_of("Mine", (), "") == ["color", "shape"]
    with pytest.raises(ValueError, match="has no attributes of Yours, expected"):
        attributes_of("Yours", (), str(path))
    with pytest.raises(ValueError, match="the attributes of Empty are"):
        attributes_of("Empty", (), str(path))
    path.write_text("[1")
    with pytest.raises(ValueError, match="has no attributes of Mine"):
        attributes_of("Mine", (), str(path))


def test_start_and_parameters(wide_clip):
    torch.manual_seed(0)
    trainer = trainer_of(ATPrompt, wide_clip, ["cat"], dataset="OxfordFlowers", noise=0.0)
    learner = trainer.model.learner
    assert sum(p.numel() for p in learner.parameters()) == 4 * 4 * 512
    assert 0.0095 < float(learner.attributes[0].std()) < 0.0105
    assert 0.019 < float(learner.ctx.std()) < 0.021


def test_options_that_do_not_exist(tiny_clip, names):
    with pytest.raises(ValueError, match=r"TRAINER.ATPROMPT.N_ATT is 0, expected 1 or more"):
        build(tiny_clip, names, N_ATT=0)
    with pytest.raises(RuntimeError, match=r"too long|context"):
        build(tiny_clip, names, N_ATT=40)
