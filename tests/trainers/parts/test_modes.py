"""Starts of several modes: phrases of any length, small visual prompts, a bias for each mode."""

import pytest
import torch

import clip
from dassl.config import CfgNode, ConfigError, accept_lists
from trainers.align import ALIGN
from trainers.parts.modes import MultiModeLearner, mode_sentences
from trainers.parts.prompts import init_context, readable

PHRASES = ["a photo of a", "this is", "", "the photo of the man"]


def learner_of(model, names, **options):
    torch.manual_seed(0)
    return MultiModeLearner(model, names, **{"n_ctx": 2, "depth": 3, "text_modes": 4, "vision_modes": 4, **options})


def test_every_mode_starts_as_its_phrase(tiny_clip, names):
    """At the start the features are those of the plain sentences; a mode without a phrase is random."""
    learner, random = (learner_of(tiny_clip, names, init=init, depth=1) for init in (PHRASES, ""))
    ids, prompts = learner.text_prompts()
    with torch.no_grad():
        found = tiny_clip.encode_text(ids, prompts).pooled.unflatten(0, (-1, 4))
        for mode, phrase in enumerate(PHRASES):
            texts = [f"{phrase} {readable(name)}." for name in names]
            plain = tiny_clip.encode_text(clip.tokenize(texts, vocab_size=tiny_clip.vocab_size)).pooled
            same = torch.allclose(found[:, mode], plain, atol=1e-5)
            assert same == bool(phrase)
    assert torch.equal(learner.ctx[2], random.ctx[2])
    assert not torch.equal(learner.ctx[1], random.ctx[1])


def test_one_phrase_starts_mode_zero_alone(tiny_clip, names):
    """The released form, draw by draw: everything but mode 0 is what it is without a phrase."""
    one, random = learner_of(tiny_clip, names, init="a photo of a"), learner_of(tiny_clip, names)
    torch.testing.assert_close(one.ctx[0], init_context(tiny_clip, "a photo", 2))
    assert torch.equal(one.ctx[1:], random.ctx[1:])
    states = one.state_dict(), random.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if name != "ctx")
    lengths = one.end.unflatten(0, (-1, 4)) - random.end.unflatten(0, (-1, 4))
    assert (lengths == torch.tensor([2, 0, 0, 0])).all()


@pytest.mark.parametrize(
    ("init", "n_ctx", "message"),
    [
        (["a photo", "a man"], 2, r"list of 2, \['a photo', 'a man'\], but there are 4 textual prompts"),
        (["a photo", 1, "", ""], 2, "give a text"),
        ("photographically a", 1, r"N_CTX 1 cuts through a word of CTX_INIT 'photographically a': use one of \["),
        (["", "", "photographically a", ""], 1, "cuts through a word of CTX_INIT 'photographically a'"),
        (["a", "a photo", "", ""], 2, "CTX_INIT 'a' has 1 tokens but N_CTX is 2"),
    ],
)
@pytest.mark.parametrize("keep_rest", [True, False])
def test_phrases_that_do_not_fit(init, n_ctx, message, keep_rest, tiny_clip):
    with pytest.raises(ValueError, match=message):
        learner_of(tiny_clip, ["cat"], init=init, n_ctx=n_ctx, keep_rest=keep_rest)


def test_rests_stand_behind_the_slots(tiny_clip):
    sentences = mode_sentences(tiny_clip, ["cat"], 2, PHRASES)
    words = [readable("of a cat"), "cat", "cat", "of the man cat"]
    for mode, text in enumerate(words):
        ids = clip.tokenize([text], vocab_size=tiny_clip.vocab_size)[0]
        row = sentences.ids[0, mode][sentences.body[0, mode]].tolist()
        assert row[2:] == ids[1 : int(ids.argmax())].tolist()
    dropped = mode_sentences(tiny_clip, ["cat"], 2, PHRASES, keep_rest=False)
    assert (dropped.end == sentences.end[0, 2]).all()


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_visual_prompts_start_scaled(coupled, scale, tiny_clip, names):
    plain, scaled = (learner_of(tiny_clip, names, coupled=coupled, vision_scale=k) for k in (1.0, scale))
    for one, other in zip(plain.vision_prompts().layers, scaled.vision_prompts().layers):
        torch.testing.assert_close(other, scale * one)
    assert torch.equal(plain.ctx, scaled.ctx)
    if coupled and scale == 0:  # it learns all the same
        sum(layer.square().sum() + layer.sum() for layer in scaled.vision_prompts().layers).backward()
        assert all(float(map_.weight.grad.abs().max()) > 0 for map_ in scaled.projections)


def test_a_bias_for_each_mode(tiny_clip, names):
    shared, own = (learner_of(tiny_clip, names, mode_bias=choice) for choice in (False, True))
    assert [tuple(bias.shape) for bias in own.vision] == [(4, 2, 64)] * 3
    assert own.projections[0].bias is None
    for layer, text, map_, bias in zip(own.vision_prompts().layers, (own.ctx, *own.deep), own.projections, own.vision):
        torch.testing.assert_close(layer, text @ map_.weight.T + bias)
    alike, apart = (
        torch.cosine_similarity(x[0], x[1], dim=-1).mean()
        for x in (l.vision_prompts().layers[0] for l in (shared, own))
    )
    assert apart < alike


def test_options_take_one_text_or_a_list():
    cfg = CfgNode(
        {"TRAINER": CfgNode({"ALIGN": CfgNode({**ALIGN.defaults().ALIGN}), "OTHER": CfgNode({"CTX_INIT": ""})})}
    )
    key = "TRAINER.ALIGN.CTX_INIT"
    for raw, expected in (
        ("['a photo', 'a drawing']", ["a photo", "a drawing"]),
        (("a photo", ""), ["a photo", ""]),
        ("a photo of a", "a photo of a"),
        ("2024", "2024"),
    ):
        cfg.merge_from_list([key, raw])
        assert expected == cfg.TRAINER.ALIGN.CTX_INIT
    with pytest.raises(ConfigError, match=r"CTX_INIT is \[1\] \(list\), expected a text or a list of texts"):
        cfg.merge_from_other_cfg({"TRAINER": {"ALIGN": {"CTX_INIT": [1]}}})
    with pytest.raises(ConfigError, match="expected str"):
        cfg.merge_from_list(["TRAINER.OTHER.CTX_INIT", ("a photo",)])
    accept_lists("TRAINER.OTHER.CTX_INIT")
    cfg.merge_from_list(["TRAINER.OTHER.CTX_INIT", ("a photo",)])
    assert cfg.TRAINER.OTHER.CTX_INIT == ["a photo"]
