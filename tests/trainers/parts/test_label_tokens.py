"""Label tokens without a trainer around them: their start, their lengths, and the terms that hold them."""

import pytest
import torch

import clip
from trainers.parts.label_tokens import LabelTokens, feature_term, logit_term
from trainers.parts.prompts import FixedText, TemplateText, TextContext


def test_names_that_share_tokens_have_tokens_of_their_own(tiny_clip):
    names = ["cat", "cat house", "house"]
    learner = LabelTokens(tiny_clip, TemplateText(tiny_clip, names, "a {}."), names)
    ids = {name: clip.tokenize([name], vocab_size=tiny_clip.vocab_size)[0] for name in names}
    assert learner.lengths.tolist() == [int(row.argmax()) - 1 for row in ids.values()]
    vectors = learner.vectors.detach().clone()
    first = sum(learner.lengths.tolist()[:1])
    torch.testing.assert_close(vectors[:first], vectors[first : 2 * first])  # both begin with "cat"
    with torch.no_grad():
        learner.vectors[:first] += 1
    torch.testing.assert_close(learner.tokens_by_class()[1], vectors[first : first + learner.lengths.tolist()[1]])


def test_one_class_in_a_batch(rng):
    text, reference = torch.randn(6, 8, generator=rng), torch.randn(6, 8, generator=rng)
    same, two = torch.tensor([1, 1]), torch.tensor([1, 2])
    cosine = torch.nn.functional.cosine_similarity(text, reference).view(3, 2)
    torch.testing.assert_close(feature_term(text, reference, same, 2, False), 1 - cosine[1].mean())
    assert float(feature_term(text, reference, same, 2, True)) == 0
    torch.testing.assert_close(feature_term(text, reference, two, 2, True), 1 - cosine[1:].mean())


def test_direction_of_the_logit_term(rng):
    """Its gradient pulls the trained logits to the reference in the paper's direction only."""
    logits, reference = (torch.randn(2, 5, generator=rng, requires_grad=True) for _ in range(2))
    logit_term(logits, reference, 2.0, "reference").backward()
    assert reference.grad is None
    expected = 2.0 * ((logits / 2).softmax(1) - (reference / 2).softmax(1)) / 2
    torch.testing.assert_close(logits.grad, expected.detach())
    logit_term(logits, reference, 2.0, "trained").backward()
    assert reference.grad is not None


def test_random_start_is_where_the_parameter_term_is_zero(tiny_clip, names):
    torch.manual_seed(3)
    inner = TextContext(tiny_clip, names, 2)
    learner = LabelTokens(tiny_clip, inner, names, random=True)
    assert float(learner.parameter_distance().detach()) == 0
    assert 0.01 < float(learner.vectors.std()) < 0.03


def test_learners_without_sentences_are_refused(tiny_clip, names):
    with pytest.raises(ValueError, match="FixedText has none"):
        LabelTokens(tiny_clip, FixedText(torch.zeros(5, 32)), names)
