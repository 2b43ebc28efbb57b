"""LAMM around every learner, against sentences and loss terms written out one at a time."""

from types import SimpleNamespace

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
    unit,
)
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from trainers.lamm import ALIGNLAMM, LAMM, CoOpLAMM, LabelAlignment, MaPLeLAMM
from trainers.parts.prompts import init_context, word_tokens
from trainers.parts.wrapper import wrap

LABELS = torch.tensor([0, 3, 1])
SHOTS = 4  # of trainer_of


def build(method, model, names, label_options=(), **options):
    """A bare trainer whose label tokens and prompts have moved away from where they started."""
    torch.manual_seed(1)
    return trainer_of(method, model, names, others={"LAMM": dict(label_options)}, **options)


def words_of(model, name):
    table = model.token_embedding.weight
    return [table[token] for token in word_tokens(model, name.replace("_", " "))]


def counts_of(model, names, tokens):
    lengths = [len(words_of(model, name)) for name in names]
    return [{"all": length, "shortest": min(lengths), "one": 1}[tokens] for length in lengths]


def labels_of(model, names, vectors, tokens, first):
    """Per class the pairs of position and vector."""
    found, k = [], 0
    for count in counts_of(model, names, tokens):
        found.append([(first + j, vectors[k + j]) for j in range(count)])
        k += count
    assert k == len(vectors)
    return found


def start_of(model, names, tokens):
    counts = counts_of(model, names, tokens)
    return torch.stack([v for name, k in zip(names, counts) for v in words_of(model, name)[:k]])


# method, options, words of the sentence before the name, position of the first label token
METHODS = {
    "LAMM": (LAMM, {}, "a photo of a", 5),
    "CoOpLAMM": (CoOpLAMM, {"N_CTX": 3}, "a a a", 4),
    "MaPLeLAMM": (MaPLeLAMM, {"PROMPT_DEPTH": 3}, "a a of a", 5),
}


def parts(method, model, trainer, images):
    """Prompts of text and images, written out of the learner's parameters."""
    inner = trainer.model.learner.inner
    if method == "LAMM":
        return [], [image_feature(model, image, []) for image in images]
    if method == "CoOpLAMM":
        return [inner.ctx], [image_feature(model, image, []) for image in images]
    texts = [inner.ctx[0], *(layer[0] for layer in inner.deep)]
    visual = [text @ project.weight.T + project.bias for text, project in zip(texts, inner.projections)]
    return texts, [image_feature(model, image, visual) for image in images]


def reference_terms(trainer, model, names, images, method, tokens, options):
    """Every term of the loss, one image and one class at a time, without weights."""
    _, _, words, first = METHODS[method]
    if options.get("PLACE") == "prefix":
        first = 3
    layers, image_features = parts(method, model, trainer, images)
    vectors = trainer.model.learner.vectors
    sentences = [f"{words} {name.replace('_', ' ')}." for name in names]
    labels = labels_of(model, names, vectors, tokens, first)
    text = [text_feature(model, s, layers, pairs) for s, pairs in zip(sentences, labels)]
    plain = [text_feature(model, s, layers) for s in sentences]
    logits, before = logits_of(model, image_features, text), logits_of(model, image_features, plain)
    cosines = [unit(text[c]) @ unit(plain[c].detach()) for c in LABELS.tolist()]
    t, terms = options.get("TEMPERATURE", 2.0), {}
    terms["ce"] = cross_entropy(logits, LABELS)
    terms["param"] = (vectors - start_of(model, names, tokens)).pow(2).sum()
    terms["feature"] = 1 - sum(cosines) / len(cosines)
    target, given = (logits, before) if options.get("LOGIT_TARGET") == "trained" else (before.detach(), logits)
    rows = [-((a / t).softmax(0) * (b / t).log_softmax(0)).sum() for a, b in zip(target, given)]
    terms["logit"] = t * t * sum(rows) / len(rows)
    return logits, terms


CASES = {
    "defaults": {},
    "released": {"TOKENS": "shortest", "LOGIT_TARGET": "trained", "W_PARAM": 1.0, "SKIP_SINGLE_CLASS": True},
    "one token": {"TOKENS": "one", "TEMPERATURE": 3.0, "W_FEATURE": 0.5, "W_LOGIT": 2.0},
    "over the left-over word": {"TOKENS": "one", "PLACE": "prefix"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_logits_terms_and_gradients(tiny_clip, names, images, method, case):
    changes = CASES[case]
    if changes.get("PLACE") == "prefix" and method != "MaPLeLAMM":
        pytest.skip("only MaPLe has left-over words")
    kind, options, _, _ = METHODS[method]
    trainer = build(kind, tiny_clip, names, {**changes, "REFERENCE": "moving"}, **options)
    tokens = changes.get("TOKENS", "all")
    logits, terms = reference_terms(trainer, tiny_clip, names, images, method, tokens, changes)
    weights = {"ce": 1.0, "param": changes.get("W_PARAM", 1 / SHOTS)}
    weights |= {"feature": changes.get("W_FEATURE", 1.0), "logit": changes.get("W_LOGIT", 0.05)}
    found = trainer.losses({"img": images, "label": LABELS})
    torch.testing.assert_close(trainer.model(images).logits, logits, rtol=1e-4, atol=1e-4)
    assert set(found) == set(terms)
    for name, value in found.items():
        torch.testing.assert_close(value, weights[name] * terms[name], rtol=1e-4, atol=1e-6, msg=name)
    expected = sum(weights[name] * terms[name] for name in terms)
    assert_same_gradients(sum(found.values()), expected, trainer.model.learner)


def test_the_reference_at_the_start_is_fixed(tiny_clip, names, images):
    """Terms against plain words and the context as it was before training, which gets no gradient."""
    torch.manual_seed(1)
    trainer = build(CoOpLAMM, tiny_clip, names, N_CTX=3)
    with torch.no_grad():
        trainer.wrapper.reference = trainer.wrapper.encode_words()
        first = trainer.wrapper.reference.pooled.clone()
        trainer.model.learner.inner.ctx.add_(1.0)
    found = trainer.losses({"img": images, "label": LABELS})
    torch.testing.assert_close(trainer.wrapper.reference.pooled, first)
    text = trainer.model.encode_text().pooled
    cosines = [unit(text[c]) @ unit(first[c]) for c in LABELS.tolist()]
    torch.testing.assert_close(found["feature"], 1 - sum(cosines) / 3, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found["param"], [trainer.model.learner.inner.ctx], allow_unused=True)
    assert gradient is None


def test_align_gets_label_tokens_in_every_mode(tiny_clip, names, images):
    """Text features of all N sentences of a class; the score is ALIGN's own, which test_align.py holds to its loops."""
    options = {"PROMPT_DEPTH": 2, "VISION_PROMPT_NUMBER": 2, "TEXT_PROMPT_NUMBER": 2}
    trainer = build(ALIGNLAMM, tiny_clip, names, {"REFERENCE": "moving"}, **options)
    inner = trainer.model.learner.inner
    vectors = trainer.model.learner.vectors
    text = trainer.model.encode_text().pooled
    for mode, (words, first) in enumerate((("a a of a", 5), ("a a", 3))):
        labels = labels_of(tiny_clip, names, vectors, "all", first)
        for c, name in enumerate(names):
            layers = [inner.ctx[mode], *(layer[mode] for layer in inner.deep)]
            expected = text_feature(tiny_clip, f"{words} {name.replace('_', ' ')}.", layers, labels[c])
            torch.testing.assert_close(text[2 * c + mode], expected, rtol=1e-4, atol=1e-5)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce", "param", "feature", "logit"}
    gradients = torch.autograd.grad(sum(terms.values()), list(trainer.model.learner.parameters()))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    assert set(trainer.extra_metrics()) == {
        "token_entropy",
        "prompt_entropy",
        "mode_similarity_image",
        "mode_similarity_text",
    }


@pytest.mark.parametrize("method", ["LAMM", "CoOpLAMM"])
def test_at_the_start_it_is_zero_shot_and_three_terms_vanish(tiny_clip, names, images, method):
    kind, options, _, _ = METHODS[method]
    trainer = build(
        kind, tiny_clip, names, {"REFERENCE": "moving"}, **({"CTX_INIT": "a photo of a"} if options else {})
    )
    with torch.no_grad():
        trainer.model.learner.vectors.copy_(trainer.model.learner.start)
        if options:
            trainer.model.learner.inner.ctx.copy_(init_context(tiny_clip, "a photo of a", 4))
    features = [image_feature(tiny_clip, image, []) for image in images]
    text = [text_feature(tiny_clip, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    plain = logits_of(tiny_clip, features, text)
    found = trainer.losses({"img": images, "label": LABELS})
    torch.testing.assert_close(trainer.model(images).logits, plain, rtol=1e-4, atol=1e-4)
    assert float(found["param"]) == 0
    assert abs(float(found["feature"])) < 1e-6
    p = (plain / 2).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(found["logit"], 0.05 * 4 * entropy, rtol=1e-4, atol=1e-6)
    assert float(entropy) > 0


def test_over_the_left_over_word_the_text_moves_at_the_start(tiny_clip, names):
    """In the released MaPLe+LAMM the first token of the name takes the place of "of", so features differ at once."""
    trainer = build(MaPLeLAMM, tiny_clip, names, {"TOKENS": "one", "PLACE": "prefix"}, PROMPT_DEPTH=2)
    with torch.no_grad():
        trainer.model.learner.vectors.copy_(trainer.model.learner.start)
        assert not torch.allclose(trainer.model.encode_text().pooled, trainer.wrapper.encode_words().pooled, atol=1e-3)
        assert trainer.model.learner.slots.tolist() == [[3]] * len(names)


@pytest.mark.parametrize("tokens", ["all", "shortest", "one"])
def test_classes_are_matched_by_name(tiny_clip, names, tokens, caplog):
    """A subset in another order with one class that was never trained."""
    there = build(LAMM, tiny_clip, names, {"TOKENS": tokens, "UNSEEN": "words"})
    checkpoint = {"state_dict": there.model.learner.state_dict(), "classnames": names}
    wanted = [names[2], "tree", names[0]]
    here = build(LAMM, tiny_clip, wanted, {"TOKENS": tokens, "UNSEEN": "words"})
    here.dm = SimpleNamespace()
    here.classnames = lambda: wanted
    here.model.learner.load_state_dict(here.for_classes("file", checkpoint))
    learner = here.model.learner
    old = there.model.learner.tokens_by_class()
    torch.testing.assert_close(learner.tokens_by_class()[0][: len(old[2])], old[2])
    torch.testing.assert_close(learner.tokens_by_class()[2][: len(old[0])], old[0])
    tree = torch.stack(words_of(tiny_clip, "tree"))
    torch.testing.assert_close(learner.tokens_by_class()[1], tree[: learner.lengths.tolist()[1]])
    own, all_ = here.model.encode_text().pooled, there.model.encode_text().pooled
    torch.testing.assert_close(own[0], all_[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own[2], all_[0], rtol=1e-4, atol=1e-5)
    plain = text_feature(tiny_clip, "a photo of a tree.", [])
    torch.testing.assert_close(own[1], plain, rtol=1e-4, atol=1e-5)
    assert "1 classes were not trained" in caplog.text


def test_other_classes_are_refused_unless_asked_for(tiny_clip, names):
    trainer = build(LAMM, tiny_clip, names)
    trainer.classnames = lambda: ["other", *names[1:]]
    checkpoint = {"state_dict": trainer.model.learner.state_dict(), "classnames": names}
    with pytest.raises(ValueError, match="trained on other classes"):
        trainer.for_classes("file", checkpoint)


def test_the_file_says_how_many_tokens_a_class_has(tiny_clip, names):
    """An evaluation with another TOKENS option reads all that was trained."""
    there = build(LAMM, tiny_clip, names, {"TOKENS": "all"})
    here = build(LAMM, tiny_clip, names, {"TOKENS": "one"})
    here.classnames = lambda: names
    here.model.learner.load_state_dict(
        here.for_classes("file", {"state_dict": there.model.learner.state_dict(), "classnames": names})
    )
    torch.testing.assert_close(here.model.encode_text().pooled, there.model.encode_text().pooled)


def test_tokens_of_earlier_classes_are_kept(tiny_clip, names):
    """Train on two sets of classes in turn: the second checkpoint holds the tokens of both."""
    sets, options = (names[:2], names[2:]), {"UNSEEN": "words"}
    first, second = (build(CoOpLAMM, tiny_clip, part, options, N_CTX=2) for part in sets)
    old = first.model.learner.tokens_by_class()
    context = first.model.learner.inner.ctx.detach().clone()
    second.classnames = lambda: sets[1]
    checkpoint = {"state_dict": first.model.learner.state_dict(), "classnames": sets[0]}
    second.model.learner.load_state_dict(second.for_classes("file", checkpoint))
    torch.testing.assert_close(second.model.learner.vectors.detach(), start_of(tiny_clip, sets[1], "all"))
    torch.testing.assert_close(second.model.learner.inner.ctx.detach(), context)
    assert list(second.extra_state()["label_tokens"]) == sets[0]
    joint = build(CoOpLAMM, tiny_clip, names, options, N_CTX=2)
    joint.classnames = lambda: names
    later = {"state_dict": second.model.learner.state_dict(), "classnames": sets[1], "extra": second.extra_state()}
    joint.model.learner.load_state_dict(joint.for_classes("file", later))
    for found, expected in zip(joint.model.learner.tokens_by_class(), [*old, *second.model.learner.tokens_by_class()]):
        torch.testing.assert_close(found[: len(expected)], expected)
    assert joint.wrapper.kept == {}


def test_evaluation_from_the_words(tiny_clip, names):
    """The released MaPLe+LAMM forgets its label tokens when it loads."""
    trainer = build(LAMM, tiny_clip, names, {"LOAD_TOKENS": False})
    trainer.classnames = lambda: names
    weights = trainer.for_classes("file", {"state_dict": trainer.model.learner.state_dict(), "classnames": names})
    torch.testing.assert_close(weights["vectors"], start_of(tiny_clip, names, "all"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TOKENS": "two"}, "TOKENS is 'two'"),
        ({"W_LOGIT": -1.0}, "W_LOGIT is -1.0"),
        ({"TEMPERATURE": 0.0}, "TEMPERATURE is 0.0"),
        ({"UNSEEN": "guess"}, "UNSEEN is 'guess'"),
        ({}, "W_PARAM None is 1 / shots"),
    ],
)
def test_bad_options(change, message):
    node = CfgNode(
        {
            "COOP": TRAINER_REGISTRY.get("CoOp").defaults().COOP,
            "LAMM": CfgNode({**LabelAlignment.defaults().LAMM, **change}),
        }
    )
    shots = 0 if not change else 4
    trainer = object.__new__(CoOpLAMM)
    with pytest.raises(ValueError, match=message):
        trainer.check_cfg(CfgNode({"TRAINER": node, "DATASET": {"NUM_SHOTS": shots}}))


def test_a_wrapped_method_is_not_wrapped_again():
    with pytest.raises(ValueError, match="CoOpLAMM is wrapped already; Twice needs a method without a wrapper"):
        wrap(CoOpLAMM, LabelAlignment, "Twice")
