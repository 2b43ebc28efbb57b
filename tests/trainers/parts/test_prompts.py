"""Sentences and learners against explicit constructions token by token."""

import pytest
import torch

import clip
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import (
    TemplateText,
    TextContext,
    build_sentences,
    init_context,
    readable,
    word_tokens,
)

VOCAB = 2048


def tokens_of(text):
    ids = clip.tokenize([text], vocab_size=VOCAB)[0].tolist()
    return ids[1 : ids.index(VOCAB - 1)]


def decode_slots(sentences, c):
    """Sentence of class c as a list: 'v0', 'v1', ... at the slots, token ids elsewhere, up to the end token."""
    row = sentences.ids[c].tolist()
    for i, slot in enumerate(sentences.slots[c].tolist()):
        row[slot] = f"v{i}"
    return row[: int(sentences.end[c]) + 1]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n_ctx", [1, 4, 5])
def test_sentences_have_the_layout_of_coop(tiny_clip, names, position, n_ctx):
    sentences = build_sentences(tiny_clip, names, n_ctx, position=position)
    context, half = [f"v{i}" for i in range(n_ctx)], n_ctx // 2
    period = tokens_of(".")
    for c, name in enumerate(names):
        word = tokens_of(name.replace("_", " "))
        middle = {
            "end": context + word,
            "middle": context[:half] + word + context[half:],
            "front": word + context,
        }[position]
        assert decode_slots(sentences, c) == [VOCAB - 2, *middle, *period, VOCAB - 1]
        assert sentences.body[c].nonzero().flatten().tolist() == list(range(1, 1 + len(middle)))


def test_template_words_stay_between_context_and_name(tiny_clip):
    sentences = build_sentences(tiny_clip, ["cat"], 2, rest="of a")
    expected = [VOCAB - 2, "v0", "v1", *tokens_of("of a"), *tokens_of("cat"), *tokens_of("."), VOCAB - 1]
    assert decode_slots(sentences, 0) == expected


def test_sentences_refuse_bad_options(tiny_clip):
    with pytest.raises(ValueError, match=r"'side'.*end, middle, front"):
        build_sentences(tiny_clip, ["cat"], 2, position="side")
    with pytest.raises(ValueError, match="context length is 0"):
        build_sentences(tiny_clip, ["cat"], 0)
    with pytest.raises(ValueError, match="'of a'"):
        build_sentences(tiny_clip, ["cat"], 2, rest="of a", position="front")


def test_context_from_words_gives_the_features_of_the_plain_sentence(tiny_clip, names):
    """CoOp that starts as "a photo of a" equals zero-shot CLIP with "a photo of a {}."."""
    learner = TextContext(tiny_clip, names, n_ctx=16, init="a photo of a")
    ids, prompts = learner.text_prompts()
    plain = clip.tokenize([f"a photo of a {readable(name)}." for name in names], vocab_size=VOCAB)
    prompted = tiny_clip.encode_text(ids, prompts).pooled
    torch.testing.assert_close(prompted, tiny_clip.encode_text(plain).pooled, rtol=0, atol=1e-6)
    assert learner.ctx.shape == (len(word_tokens(tiny_clip, "a photo of a")), 48)


def test_class_specific_context_is_bound_to_its_classes(tiny_clip, names):
    shared = TextContext(tiny_clip, names, n_ctx=3)
    own = TextContext(tiny_clip, names, n_ctx=3, class_specific=True)
    assert (shared.ctx.shape, shared.class_bound) == ((3, 48), False)
    assert (own.ctx.shape, own.class_bound) == ((len(names), 3, 48), True)


def test_only_learned_parameters_are_in_the_state(tiny_clip, names):
    assert set(TextContext(tiny_clip, names, n_ctx=3).state_dict()) == {"ctx"}
    assert set(TemplateText(tiny_clip, names, "a {}.").state_dict()) == set()


def test_template_text_is_the_tokenized_template(tiny_clip):
    ids, prompts = TemplateText(tiny_clip, ["yin_yang"], "a photo of a {}.").text_prompts()
    assert prompts is None
    assert torch.equal(ids, clip.tokenize(["a photo of a yin yang."], vocab_size=VOCAB))


def test_init_phrase_shorter_than_the_context_is_refused(tiny_clip):
    with pytest.raises(ValueError, match="N_CTX is 9"):
        init_context(tiny_clip, "a cat", 9)


def learner_of(model, names, **options):
    return MultiModeLearner(model, names, **{"n_ctx": 2, "depth": 3, "text_modes": 3, "vision_modes": 3, **options})


def test_modes_are_class_major_rows(tiny_clip, names):
    learner = learner_of(tiny_clip, names, init="")
    ids, prompts = learner.text_prompts()
    assert ids.shape[0] == len(names) * 3
    assert len(prompts.layers) == 3
    for c in range(len(names)):
        for n in range(3):
            row = c * 3 + n
            assert int(prompts.prompt_index[row]) == n
            assert torch.equal(prompts.layers[0][prompts.prompt_index][row], learner.ctx[n])
            assert torch.equal(prompts.layers[2][prompts.prompt_index][row], learner.deep[1][n])
            assert tokens_of(readable(names[c])) == ids[row][learner.body[row]].tolist()[2:]


def test_visual_prompts_are_linear_maps_of_the_textual_ones(tiny_clip, names):
    learner = learner_of(tiny_clip, names)
    layers = learner.vision_prompts().layers
    texts = [learner.ctx, *learner.deep]
    for layer, text, projection in zip(layers, texts, learner.projections):
        for m in range(3):
            expected = text[m] @ projection.weight.T + projection.bias
            torch.testing.assert_close(layer[m], expected)


def test_independent_prompts_allow_different_numbers(tiny_clip, names):
    learner = learner_of(tiny_clip, names, vision_modes=5, coupled=False)
    assert learner.vision_prompts().layers[0].shape == (5, 2, 64)
    with pytest.raises(ValueError, match="5 visual and 3 textual prompts cannot be coupled"):
        learner_of(tiny_clip, names, vision_modes=5)


def coupled_parameters(modes, n_ctx, depth, width, vision_width):
    """Per layer: the prompts of all modes, and one linear map with bias."""
    return depth * (modes * n_ctx * width + width * vision_width + vision_width)


def test_parameter_count(tiny_clip, names):
    learner = learner_of(tiny_clip, names)
    assert sum(p.numel() for p in learner.parameters()) == coupled_parameters(3, 2, 3, 48, 64)
    # The same formula gives the counts of the released code on ViT-B/16 (depth 9, b = 2).
    assert coupled_parameters(4, 2, 9, 512, 768) == 3_582_720
    assert coupled_parameters(2, 2, 9, 512, 768) == 3_564_288


def test_mode_zero_keeps_the_rest_of_the_phrase(tiny_clip):
    kept = learner_of(tiny_clip, ["cat"], init="a photo of a", n_ctx=1)
    dropped = learner_of(tiny_clip, ["cat"], init="a photo of a", n_ctx=1, keep_rest=False)
    assert int(kept.end[0]) - int(dropped.end[0]) == len(tokens_of("photo of a"))
    assert int(kept.end[1]) == int(dropped.end[0])  # the other modes have no template words
    torch.testing.assert_close(kept.ctx[0], init_context(tiny_clip, "a photo of a", 1))


def test_shared_start_copies_the_deep_maps(tiny_clip, names):
    shared = learner_of(tiny_clip, names, shared_start=True)
    assert torch.equal(shared.projections[1].weight, shared.projections[2].weight)
    assert not torch.equal(shared.projections[0].weight, shared.projections[1].weight)
    separate = learner_of(tiny_clip, names)
    assert not torch.equal(separate.projections[1].weight, separate.projections[2].weight)


def test_too_deep_prompts_are_refused(tiny_clip, names):
    with pytest.raises(ValueError, match="PROMPT_DEPTH is 5, but the shallower tower has 4 blocks"):
        learner_of(tiny_clip, names, depth=5)
