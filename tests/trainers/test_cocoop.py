"""CoCoOp's logits and gradients against a loop over images and classes, and the encoding in chunks."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip import CLIP
from dassl.engine import TrainerX
from dassl.engine.precision import Precision
from tests.clip.clip_reference import plain_image, prompted_text
from trainers.base import PromptedCLIP, cosine_score
from trainers.cocoop import CoCoOp, ConditionalContext, cosine_by_image
from trainers.parts.prompts import TextContext, readable

VOCAB, HEADS, LAYERS = 2048, 2, 4
LABEL = torch.tensor([0, 3, 2])


def build(model, names, chunk_rows=512, n_ctx=3, init=""):
    torch.manual_seed(1)
    learner = ConditionalContext(model, names, n_ctx, init, chunk_rows)
    with torch.no_grad():  # larger, so that the shift of every image matters
        learner.ctx.mul_(10)
        learner.meta_net.linear2.weight.mul_(2)
    return PromptedCLIP(model, learner, cosine_by_image)


def reference_logits(model, learner, images, names):
    """s cos(f_b, w_c(b)) from sentences whose context is ctx + W2 relu(W1 f_b + b1) + b2."""
    weights = dict(model.state_dict())
    net = learner.meta_net
    n_ctx, rows = len(learner.ctx), []
    for image in images:
        feature = plain_image(weights, image[None], LAYERS, 1)[0]
        feature = feature / feature.norm()
        hidden = (net.linear1.weight @ feature + net.linear1.bias).clamp(min=0)
        shift = net.linear2.weight @ hidden + net.linear2.bias
        context = torch.stack([vector + shift for vector in learner.ctx])
        row = []
        for name in names:
            ids = clip.tokenize(" ".join(["X"] * n_ctx) + f" {readable(name)}.", vocab_size=VOCAB)
            text, _ = prompted_text(weights, ids, LAYERS, HEADS, [[context]], [range(1, 1 + n_ctx)])
            row.append(weights["logit_scale"].exp() * feature @ text[0] / text[0].norm())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gradients(loss, learner):
    """Gradient of every learned parameter by name."""
    values = torch.autograd.grad(loss, list(learner.parameters()))
    return dict(zip(dict(learner.named_parameters()), values))


def assert_same_gradients(found, expected):
    assert set(found) == {"ctx", *(f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))}
    for name in found:
        assert float(expected[name].abs().max()) > 0, name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("chunk_rows", [512, 4])
def test_logits_and_gradients_equal_the_loop(tiny_clip, names, images, chunk_rows):
    prompted = build(tiny_clip, names, chunk_rows)
    found = prompted(images).logits
    expected = reference_logits(tiny_clip, prompted.learner, images, names)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    losses = [F.cross_entropy(logits, LABEL) for logits in (found, expected)]
    assert_same_gradients(*(gradients(loss, prompted.learner) for loss in losses))


@pytest.mark.parametrize("chunk_rows", [1, 4, 7, 14])
def test_chunks_change_neither_logits_nor_gradients(tiny_clip, names, images, chunk_rows):
    whole, parts = build(tiny_clip, names), build(tiny_clip, names, chunk_rows)
    outputs = [prompted(images) for prompted in (whole, parts)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs[1].text.pooled, outputs[0].text.pooled, rtol=1e-5, atol=1e-6)
    losses = [F.cross_entropy(output.logits, LABEL) for output in outputs]
    assert_same_gradients(gradients(losses[1], parts.learner), gradients(losses[0], whole.learner))


def saved_numbers(model, names, images, chunk_rows):
    """Numbers that the forward pass keeps for the backward pass."""
    prompted, kept = build(model, names, chunk_rows), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        prompted(images)
    return sum(kept)


def test_memory_grows_with_a_chunk_and_not_with_the_batch(tiny_clip, names, rng):
    images = torch.randn(8, 3, 32, 32, generator=rng)
    one, *whole = (saved_numbers(tiny_clip, names, images[:count], 512) for count in (1, 2, 8))
    parts = [saved_numbers(tiny_clip, names, images[:count], 5) for count in (2, 8)]
    assert whole[1] > 3 * whole[0]
    assert parts[1] < 1.2 * one  # the last chunk, of one image; of the others only inputs and results
    assert parts[1] - parts[0] < whole[0] / 10


def test_evaluation_of_chunks_keeps_nothing(tiny_clip, names, images):
    prompted = build(tiny_clip, names, chunk_rows=4)
    with torch.no_grad():
        output = prompted(images)
    assert not output.logits.requires_grad
    assert output.text.pooled.shape == (15, 32)
    assert output.text.tokens.shape == (15, 0, 32)


def test_identical_images_give_identical_rows(tiny_clip, names, images):
    prompted = build(tiny_clip, names, chunk_rows=7)
    logits = prompted(torch.stack([images[0], images[1], images[0]])).logits
    torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=1e-5)
    assert float((logits[1] - logits[0]).detach().abs().min()) > 1e-4


def test_without_a_shift_it_is_coop(tiny_clip, names, images):
    prompted = build(tiny_clip, names)
    coop = TextContext(tiny_clip, names, n_ctx=3)
    with torch.no_grad():
        coop.ctx.copy_(prompted.learner.ctx)
        shifted = prompted(images).logits
        prompted.learner.meta_net.linear2.weight.zero_()
        prompted.learner.meta_net.linear2.bias.zero_()
        plain = PromptedCLIP(tiny_clip, coop, cosine_score)(images).logits
        torch.testing.assert_close(prompted(images).logits, plain, rtol=1e-5, atol=1e-5)
    assert float((shifted - plain).abs().max()) > 1e-2


def test_words_start_the_context(tiny_clip, names):
    learner = ConditionalContext(tiny_clip, names, 16, "a photo of a", 512)
    tokens = clip.tokenize("a photo of a", vocab_size=VOCAB)[0, 1:]
    assert torch.equal(learner.ctx, tiny_clip.token_embedding.weight[tokens[: len(learner.ctx)]])


def test_parameters_on_vit_b16(wide_clip):
    learner = ConditionalContext(wide_clip, ["cat"], 4, "", 512)
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {
        "ctx": (4, 512),
        "meta_net.linear1.weight": (32, 512),
        "meta_net.linear1.bias": (32,),
        "meta_net.linear2.weight": (512, 32),
        "meta_net.linear2.bias": (512,),
    }
    assert sum(p.numel() for p in learner.parameters()) == 35_360
    assert float(learner.ctx.detach().std()) == pytest.approx(0.02, rel=0.1)
    for layer, inputs in ((learner.meta_net.linear1, 512), (learner.meta_net.linear2, 32)):
        assert float(layer.weight.detach().std()) == pytest.approx(
            (3 * inputs) ** -0.5, rel=0.05
        )  # uniform in +- 1/sqrt(in)
        assert float(layer.weight.detach().abs().max()) <= inputs**-0.5


def test_width_of_the_net_follows_the_image_feature():
    """RN50's features are 1024 wide, its text tower 512."""
    numbers = {"image_resolution": 32, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 16}
    text = {"context_length": 77, "vocab_size": VOCAB, "transformer_width": 512, "transformer_heads": 8}
    model = CLIP(embed_dim=1024, **numbers, **text, transformer_layers=1)
    net = ConditionalContext(model, ["cat"], 4, "", 512).meta_net
    assert (net.linear1.weight.shape, net.linear2.weight.shape) == ((64, 1024), (512, 64))


def test_text_is_not_cached_in_an_evaluation(tiny_clip, names, images, monkeypatch):
    trainer, seen = object.__new__(CoCoOp), []
    trainer.model, trainer.precision = build(tiny_clip, names), Precision("fp32", "cpu")
    monkeypatch.setattr(CoCoOp, "set_model_mode", lambda self, mode: None)
    monkeypatch.setattr(TrainerX, "test", lambda self, split: seen.extend(map(self.model_inference, images.split(1))))
    trainer.test()
    assert trainer.text is None
    torch.testing.assert_close(torch.cat(seen), trainer.model(images).logits, rtol=1e-5, atol=1e-5)


def test_text_without_an_image_is_refused(tiny_clip, names):
    with pytest.raises(ValueError, match=r"ConditionalContext depends on the image"):
        build(tiny_clip, names).encode_text()


def test_bad_options_are_refused():
    cfg = CfgNode({"TRAINER": {"COCOOP": {**CoCoOp.defaults().COCOOP, "CHUNK_ROWS": 0}}})
    with pytest.raises(ValueError, match=r"TRAINER\.COCOOP\.CHUNK_ROWS is 0, expected 1 or more"):
        CoCoOp.check_cfg(object.__new__(CoCoOp), cfg)
