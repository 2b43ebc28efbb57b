"""ALIGN's logits against a plain double loop over images and classes, one prompt and one sentence at a time."""

from types import SimpleNamespace

import ot
import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Encoded, Prompts
from trainers.align import ALIGN, TwoLevelTransport
from trainers.base import PromptedCLIP
from trainers.parts.modes import MultiModeLearner, mode_similarity
from trainers.parts.prompts import readable, word_tokens

INIT = "a photo of a"


def options(**changed):
    node = ALIGN.defaults().ALIGN
    node.merge_from_list([item for pair in changed.items() for item in pair])
    return node


def build(model, names, modes=2, **changed):
    torch.manual_seed(1)
    node = (
        options(THRESHOLD=1e-7, MAX_ITER=5000, **changed) if changed.get("SCORE") != "released" else options(**changed)
    )
    learner = MultiModeLearner(model, names, n_ctx=2, depth=3, text_modes=modes, vision_modes=modes, init=INIT)
    with torch.no_grad():  # larger prompts, so that every mode and layer matters
        for parameter in learner.parameters():
            parameter.mul_(10)
    return PromptedCLIP(model, learner, TwoLevelTransport(learner, node))


def by_mode(model, prompted, image):
    """Features of one image under every visual mode: list of (pooled, tokens)."""
    learner, result = prompted.learner, []
    for m in range(learner.vision_modes):
        layers = tuple(layer[m] for layer in learner.vision_prompts().layers)
        encoded = model.encode_image(image[None], Prompts(layers, None))
        result.append((F.normalize(encoded.pooled[0], dim=-1), F.normalize(encoded.tokens[0], dim=-1)))
    return result


def by_sentence(model, prompted, name, released, mode):
    """Pooled feature and token set of one class under one textual mode."""
    learner = prompted.learner
    words = " ".join(INIT.split()[2:]) if mode == 0 else ""  # the phrase is longer than the two vectors of mode 0
    text = " ".join(["X", "X", words, readable(name)]).replace("  ", " ")
    ids = [model.vocab_size - 2, *word_tokens(model, text + "."), model.vocab_size - 1]
    layers = tuple(layer[mode] for layer in (learner.ctx, *learner.deep))
    encoded = model.encode_text(torch.tensor([ids]), Prompts(layers, torch.tensor([1, 2])))
    tokens = F.normalize(encoded.tokens[0], dim=-1)
    first = len(word_tokens(model, " ".join(["X X", *INIT.split()[2:], readable(name)]) + ".")) + 1  # end of mode 0
    used = tokens[: first - 1] if released else tokens[1 : 1 + len(word_tokens(model, text))]
    return F.normalize(encoded.pooled[0], dim=-1), used


def released_plans(costs, reg=0.1, limit=100, tolerance=1e-2):
    """The authors' iteration on equal-sized problems (K, R, S) that stop together."""
    kernel = torch.exp(-torch.stack(costs) / reg)
    r, c = torch.ones(kernel.shape[:2]), torch.ones(kernel.shape[0], kernel.shape[2])
    for _ in range(limit):
        before = r
        r = 1 / kernel.shape[1] / torch.einsum("krs,ks->kr", kernel, c)
        c = 1 / kernel.shape[2] / torch.einsum("krs,kr->ks", kernel, r)
        if (r - before).abs().mean() < tolerance:
            break
    return r[:, :, None] * kernel * c[:, None, :]


def exact_plan(cost, reg=0.1):
    """Converged plan with uniform marginals, by another package in double precision."""
    masses = ([1 / count] * count for count in cost.shape)
    plan = ot.sinkhorn(*masses, cost.detach().double().numpy(), reg, numItermax=10000, stopThr=1e-9)
    return torch.from_numpy(plan).float()


def reference_logits(model, prompted, images, names, node):
    """z_bc by loops over images, classes and pairs of modes (DESIGN: token level, prompt level, logit)."""
    released, scale = node.SCORE == "released", float(model.logit_scale.exp())
    prompts, rows = range(prompted.learner.text_modes), []
    similarities, costs = [], []
    for image in images:
        visual = by_mode(model, prompted, image)
        for name in names:
            sentences = [by_sentence(model, prompted, name, released, mode) for mode in prompts]
            similarity = torch.stack([torch.stack([x @ y for y, _ in sentences]) for x, _ in visual])
            token_costs = [1 - r[1:] @ s.T for _, r in visual for _, s in sentences]  # r without the class token
            if node.PLAN == "uniform":
                plans = [torch.full_like(cost, 1 / cost.numel()) for cost in token_costs]
            elif released:
                plans = released_plans(token_costs)
            else:
                plans = [exact_plan(cost) for cost in token_costs]
            distance = torch.stack([(plan * cost).sum() for plan, cost in zip(plans, token_costs)])
            distance = distance.view(similarity.shape)
            similarities.append(similarity)
            costs.append(1 - similarity + node.BETA * ((1 - distance) if released else distance))
    if node.PLAN == "uniform":
        plans = [torch.full_like(cost, 1 / cost.numel()) for cost in costs]
    else:
        plans = released_plans(costs) if released else [exact_plan(cost) for cost in costs]
    for plan, cost, similarity in zip(plans, costs, similarities):
        rows.append(scale * (plan * similarity).sum() if released else scale * (1 - (plan * cost).sum()))
    return torch.stack(rows).view(len(images), len(names))


CASES = [
    {"SCORE": "paper"},
    {"SCORE": "paper", "BETA": 0.3},
    {"SCORE": "paper", "PLAN": "uniform"},
    {"SCORE": "released"},
    {"SCORE": "released", "PLAN": "uniform"},
]


@pytest.mark.parametrize("changed", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_logits_equal_the_double_loop(tiny_clip, names, images, changed):
    """On the fast path and by the definition; other weights of the token level do not give them."""
    prompted, definition, wrong = (
        build(tiny_clip, names, **{**changed, **more})
        for more in ({}, {"FAST": False}, {"FAST": False, "SCORE": "paper", "BETA": -1.0})
    )
    expected = reference_logits(tiny_clip, prompted, images, names, prompted.score.options)
    with torch.no_grad():
        found = prompted(images).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(definition(images).logits, expected, rtol=1e-4, atol=1e-4)
        assert float((wrong(images).logits - expected).abs().max()) > 1e-2
    assert float(found.std()) > 1e-2


def test_the_two_scores_differ(tiny_clip, names, images):
    with torch.no_grad():
        paper = build(tiny_clip, names, SCORE="paper")(images).logits
        released = build(tiny_clip, names, SCORE="released")(images).logits
    assert float((paper - released).abs().min()) > 1e-2


def test_logits_do_not_depend_on_the_batch(tiny_clip, names, images):
    prompted = build(tiny_clip, names)
    with torch.no_grad():
        together = prompted(images).logits
        alone = torch.cat([prompted(image[None]).logits for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


def test_logits_do_not_depend_on_the_other_classes(tiny_clip, names, images):
    """Dropping the longest names shortens the text that is computed; the logits of the others stay."""
    few = [name for name in names if len(name) < 5]
    with torch.no_grad():
        all_classes = build(tiny_clip, names)(images).logits[:, [names.index(name) for name in few]]
        alone = build(tiny_clip, few)(images).logits
    torch.testing.assert_close(all_classes, alone, rtol=0, atol=2e-5)


def test_one_mode_of_the_released_score_is_plain_cosine(tiny_clip, names, images):
    prompted = build(tiny_clip, names, modes=1, SCORE="released")
    with torch.no_grad():
        output = prompted(images)
    cosine = F.normalize(output.image.pooled, dim=-1) @ F.normalize(output.text.pooled, dim=-1).T
    torch.testing.assert_close(output.logits, cosine * tiny_clip.logit_scale.exp())


def test_every_learned_parameter_gets_a_gradient(tiny_clip, names, images):
    for score in ("paper", "released"):
        prompted = build(tiny_clip, names, SCORE=score)
        F.cross_entropy(prompted(images).logits, torch.tensor([0, 1, 2])).backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in prompted.learner.parameters())
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_entropy_of_uniform_plans_is_one(tiny_clip, names, images):
    learned, uniform = build(tiny_clip, names), build(tiny_clip, names, PLAN="uniform")
    with torch.no_grad():
        learned(images)
        uniform(images)
    assert {name: float(value) for name, value in uniform.score.metrics.items() if "entropy" in name} == {
        "token_entropy": 1.0,
        "prompt_entropy": 1.0,
    }
    assert 0 < float(learned.score.metrics["token_entropy"]) < 1


def test_bad_options_are_named_together():
    node = {**options(), "SCORE": "papers", "LAMBDA": 0.0, "MAX_ITER": 0}
    cfg = CfgNode({"TRAINER": {"ALIGN": node}})
    with pytest.raises(ValueError, match=r"(?s)SCORE is 'papers'.*LAMBDA is 0.0.*MAX_ITER is 0"):
        ALIGN.check_cfg(object.__new__(ALIGN), cfg)


OPTIONS = [
    {},
    {"BETA": 0.3},
    {"PLAN": "uniform"},
    {"GRADIENT": "regularized"},
    {"GRADIENT": "implicit", "BETA": 0.5},
    {"SCORE": "released"},
    {"SCORE": "released", "BETA": 0.3},
    {"SCORE": "released", "PLAN": "uniform"},
]


@pytest.mark.parametrize("changed", OPTIONS, ids=lambda case: "-".join(map(str, case.values())) or "default")
def test_the_fast_path_is_the_definition(changed, rng):
    """Scores, plans' entropies and gradients of all features in float32, with token sets of unequal size."""
    base = torch.randn(4, 16, generator=rng)
    shapes = ((3, 4), (3, 4, 11), (5, 2), (5, 2, 6))
    leaves = [torch.randn(*k, 4, generator=rng) @ base + torch.randn(*k, 16, generator=rng) for k in shapes]
    for leaf in leaves:
        leaf.requires_grad_()
    mask = torch.rand(5, 2, 6, generator=rng) < 0.6
    mask[..., 1] = True
    found = []
    for fast in (True, False):
        learner = SimpleNamespace(vision_modes=4, text_modes=2, body=mask.flatten(0, 1), end=mask.sum(-1).flatten())
        score = TwoLevelTransport(learner, options(FAST=fast, **changed))
        score.text_mask = lambda length: mask
        x, r, y, s = (leaf.flatten(0, 1) for leaf in leaves)
        image = Encoded(x, torch.cat([x[:, None], r], dim=1))
        logits = score(image, Encoded(y, s), torch.tensor(20.0))
        loss = F.cross_entropy(logits, torch.tensor([0, 1, 2]))
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.append((logits / 20, score.metrics, [torch.zeros(()) if g is None else g for g in grads]))
    (fast, metrics, grads), (plain, plain_metrics, plain_grads) = found
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    assert metrics.keys() == plain_metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value, plain_metrics[name], atol=1e-4, rtol=0)
    for one, other in zip(grads, plain_grads):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())
    assert float(fast.std()) > 1e-2


def test_mode_similarity_is_the_mean_cosine_of_pairs(rng):
    features = torch.randn(5, 3, 8, generator=rng)
    unit = F.normalize(features, dim=-1)
    pairs = [(unit[:, i] * unit[:, j]).sum(-1) for i in range(3) for j in range(3) if i != j]
    torch.testing.assert_close(mode_similarity(features), torch.stack(pairs).mean())
    assert mode_similarity(features[:, :1]) == pytest.approx(1)
    torch.testing.assert_close(mode_similarity(features[:, :1].expand(5, 3, 8)), torch.tensor(1.0))


def test_unknown_gradients_are_refused():
    for changed in ({"GRADIENT": "exact"}, {"GRADIENT": "implicit", "SCORE": "released"}):
        cfg = CfgNode({"TRAINER": {"ALIGN": {**options(), **changed}}})
        with pytest.raises(ValueError, match=r"GRADIENT is '(exact|implicit)', expected (one of )?constant"):
            ALIGN.check_cfg(object.__new__(ALIGN), cfg)
