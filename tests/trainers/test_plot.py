"""PLOT's logits and gradients against loops over images, classes and prompts, on a ViT and on a ResNet."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from trainers.base import PromptedCLIP
from trainers.plot import PLOT

SHORT = ["N", 3, "N_CTX", 4]


@pytest.fixture(scope="module")
def tiny_resnet():
    torch.manual_seed(0)
    model = clip.CLIP(32, 64, (1, 1, 1, 1), 8, None, 77, 2048, 48, 2, 2, vision_heads=4)
    return model.eval().requires_grad_(False)


def build(model, names, *options, dataset="Caltech101"):
    """A PLOT trainer around a built model, without data; its prompts are enlarged, so that every one matters."""
    trainer = object.__new__(PLOT)
    trainer.cfg = CfgNode({"TRAINER": PLOT.defaults(), "DATASET": {"NAME": dataset}})
    trainer.cfg.TRAINER.PLOT.merge_from_list([*SHORT, *options])
    trainer.check_cfg(trainer.cfg)
    torch.manual_seed(1)
    learner = trainer.build_learner(model, names)
    with torch.no_grad():
        learner.ctx.mul_(10)
    trainer.model = PromptedCLIP(model, learner, trainer.build_score(learner))
    return trainer


def sentence_feature(model, name, vectors, position="end"):
    """Text feature of `[vectors] NAME.`, put together row by row and run without cutting."""
    ids = clip.tokenize([name.replace("_", " "), "."], vocab_size=model.vocab_size)
    words = [model.token_embedding.weight[i] for i in ids[0, 1 : int(ids[0].argmax())]]
    vectors, half = list(vectors), len(vectors) // 2
    parts = {
        "end": [*vectors, *words],
        "middle": [*vectors[:half], *words, *vectors[half:]],
        "front": [*words, *vectors],
    }
    start, stop = model.token_embedding.weight[-2], model.token_embedding.weight[-1]
    x = torch.stack([start, *parts[position], model.token_embedding.weight[ids[1, 1]], stop])
    x = x + model.positional_embedding[: len(x)]
    mask = torch.full((len(x), len(x)), -torch.inf).triu(1)
    for block in model.transformer.resblocks:
        x = block(x[None], mask)[0]
    return model.ln_final(x[-1]) @ model.text_projection


def plain_logits(model, learner, images, names, pooled=False, released=False, position="end"):
    """PLOT by loops; plans are made by a plain Sinkhorn, to convergence unless `released`."""
    scale = model.logit_scale.exp()
    encoded = model.encode_image(images)
    similarities, globals_ = [], []
    for b in range(len(images)):
        local = [u / u.norm() for u in encoded.tokens[b, 1:]]
        for c, name in enumerate(names):
            contexts = learner.ctx[c] if learner.class_bound else learner.ctx
            sentences = [sentence_feature(model, name, vectors, position) for vectors in contexts]
            mean = sum(sentences) / len(sentences)
            similarities.append(torch.stack([torch.stack([u @ (w / w.norm()) for w in sentences]) for u in local]))
            globals_.append((encoded.pooled[b] / encoded.pooled[b].norm()) @ (mean / mean.norm()))
    kernels = [torch.exp(-(1 - s.detach()) / 0.1) for s in similarities]
    m, n = kernels[0].shape
    r, c = [torch.ones(m)] * len(kernels), [torch.ones(n)] * len(kernels)
    for _ in range(100 if released else 3000):
        before = torch.stack(r)
        r = [1 / m / (kernel @ column) for kernel, column in zip(kernels, c)]
        c = [1 / n / (kernel.T @ row) for kernel, row in zip(kernels, r)]
        if released and (torch.stack(r) - before).abs().mean() < 0.01:
            break
    logits = [
        scale * (row[:, None] * kernel * column * s).sum()
        for row, kernel, column, s in zip(r, kernels, c, similarities)
    ]
    if pooled:
        logits = [logit + scale * cosine for logit, cosine in zip(logits, globals_)]
    return torch.stack(logits).view(len(images), len(names))


@pytest.mark.parametrize("backbone", ["tiny_clip", "tiny_resnet"])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("pooled", ["never", "always"])
def test_logits_and_gradient_are_those_of_the_loops(backbone, released, pooled, names, rng, request):
    model = request.getfixturevalue(backbone)
    images = torch.randn(2, 3, model.visual.input_resolution, model.visual.input_resolution, generator=rng)
    names = names[:3]
    rule = ["STOP", "scaling_change"] if released else ["STOP", "marginal", "THRESHOLD", 1e-6, "MAX_ITER", 3000]
    trainer = build(model, names, "POOLED", pooled, *rule)
    learner, label = trainer.model.learner, torch.tensor([0, 2])
    found = trainer.model(images).logits
    (grad,) = torch.autograd.grad(F.cross_entropy(found, label), learner.ctx)
    expected = plain_logits(model, learner, images, names, pooled == "always", released)
    (reference,) = torch.autograd.grad(F.cross_entropy(expected, label), learner.ctx)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))
    assert float(found.detach().std()) > 1e-2
    assert (grad.abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_own_contexts_for_every_class(tiny_clip, names, rng, position):
    images = torch.randn(2, 3, 32, 32, generator=rng)
    names = names[:3]
    trainer = build(tiny_clip, names, "CSC", True, "CLASS_TOKEN_POSITION", position, "STOP", "scaling_change")
    learner = trainer.model.learner
    assert learner.class_bound
    assert learner.ctx.shape == (3, 3, 4, 48)
    with torch.no_grad():
        expected = plain_logits(tiny_clip, learner, images, names, released=True, position=position)
        torch.testing.assert_close(trainer.model(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_pooled_features_count_on_imagenet_alone(tiny_clip, names, rng):
    images = torch.randn(2, 3, 32, 32, generator=rng)
    with torch.no_grad():
        logits = {
            (dataset, pooled): build(tiny_clip, names, "POOLED", pooled, dataset=dataset).model(images).logits
            for dataset in ("ImageNet", "ImageNetV2")
            for pooled in ("imagenet", "always", "never")
        }
    assert torch.equal(logits["ImageNet", "imagenet"], logits["ImageNet", "always"])
    assert torch.equal(logits["ImageNetV2", "imagenet"], logits["ImageNetV2", "never"])
    assert not torch.allclose(logits["ImageNet", "always"], logits["ImageNet", "never"])


def test_parameters_on_resnet_50_and_vit_b16():
    with torch.device("meta"):  # both have a text tower of width 512
        model = clip.CLIP(1024, 224, 1, 768, 16, 77, 49408, 512, 8, 1)
    trainer = build(model, ["cat", "dog"], "N", 4, "N_CTX", 16)
    learner = trainer.model.learner
    assert {name: tuple(p.shape) for name, p in learner.named_parameters()} == {"ctx": (4, 16, 512)}
    assert sum(p.numel() for p in learner.parameters()) == 32_768
    assert float(learner.ctx.detach().std()) == pytest.approx(10 * 0.02, rel=0.02)
    assert list(learner.state_dict()) == ["ctx"]
    assert not learner.class_bound
    assert PLOT.defaults().PLOT.N == 4
    assert PLOT.defaults().PLOT.N_CTX == 16


def test_contexts_go_on_to_new_classes(tiny_clip, names):
    one, other = build(tiny_clip, names[:2]), build(tiny_clip, names[2:])
    other.model.learner.load_state_dict(one.model.learner.state_dict())
    assert other.model.encode_text().pooled.shape == (3 * 3, 32)


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
def test_the_fast_path_is_the_definition(tiny_clip, names, rng, stop):
    """Scores, logged figures and gradients."""
    images, label, found = torch.randn(2, 3, 32, 32, generator=rng), torch.tensor([0, 2]), []
    for fast in (True, False):
        trainer = build(tiny_clip, names[:3], "STOP", stop, "FAST", fast)
        logits = trainer.model(images).logits
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, label), trainer.model.learner.ctx)
        found.append((logits / tiny_clip.logit_scale.exp(), trainer.extra_metrics(), grad))
    (fast, metrics, grad), (plain, plain_metrics, plain_grad) = found
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(grad, plain_grad, atol=1e-4 * float(plain_grad.abs().max()), rtol=0)
    assert set(metrics) == {"plan_entropy", "mode_similarity_text"}
    for name, value in metrics.items():
        torch.testing.assert_close(value, plain_metrics[name], atol=1e-4, rtol=0)


def test_the_entropy_of_the_plans_is_logged(tiny_clip, names, rng):
    trainer = build(tiny_clip, names)
    trainer.model(torch.randn(2, 3, 32, 32, generator=rng))
    assert 0 < float(trainer.extra_metrics()["plan_entropy"]) < 1


def test_bad_options_are_named_together(tiny_clip, names):
    with pytest.raises(
        ValueError, match=r"(?s)N is 0.*CLASS_TOKEN_POSITION is 'left'.*POOLED is 'yes'.*LAMBDA is 0.0.*STOP"
    ):
        build(tiny_clip, names, "N", 0, "CLASS_TOKEN_POSITION", "left", "POOLED", "yes", "LAMBDA", 0.0, "STOP", "soon")
