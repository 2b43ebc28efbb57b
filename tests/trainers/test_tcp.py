"""TCP's loss terms and gradients against plain forwards of one sentence at a time."""

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

import clip
from trainers.tcp import TCP

VOCAB = 2048
LABELS = torch.tensor([0, 3, 1])
TEMPLATE = "a drawing of a {}, in ink."


def build(model, names, **options):
    torch.manual_seed(1)
    return trainer_of(TCP, model, names, **{"template": TEMPLATE, "N_CTX": 3, "BLOCK": 2, **options})


def reference(model, trainer, images, names, after="{}."):
    """Logits and loss terms; the vectors of class c at the input of the block are net(teacher of c)."""
    learner, options = trainer.model.learner, trainer.options
    n_ctx, width = learner.ctx.shape
    net, texts, cosines = learner.meta_net, [], []
    for name in names:
        name = name.replace("_", " ")
        teacher = unit(text_feature(model, TEMPLATE.format(name), []))
        hidden = net.linear1.weight @ teacher + net.linear1.bias
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))
        aware = (net.linear2.weight @ hidden + net.linear2.bias).reshape(n_ctx, width)
        layers = [learner.ctx] + [None] * (options.BLOCK - 1) + [aware]
        texts.append(text_feature(model, " ".join(["X"] * n_ctx) + " " + after.format(name), layers))
        cosines.append(unit(texts[-1]) @ teacher)
    logits = logits_of(model, [image_feature(model, image, []) for image in images], texts)
    return logits, cross_entropy(logits, LABELS), options.W * (1 - sum(cosines) / len(cosines))


@pytest.mark.parametrize(("block", "weight"), [(1, 8.0), (2, 8.0), (3, 0.5)])
def test_logits_losses_and_gradients(tiny_clip, names, images, block, weight):
    trainer = build(tiny_clip, names, BLOCK=block, W=weight)
    logits, ce, kg = reference(tiny_clip, trainer, images, names)
    torch.testing.assert_close(trainer.model(images).logits, logits, rtol=1e-4, atol=1e-4)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce", "kg"}
    torch.testing.assert_close(terms["ce"], ce, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["kg"], kg, rtol=1e-4, atol=1e-5)
    assert_same_gradients(terms["ce"] + terms["kg"], ce + kg, trainer.model.learner)


def test_sentence_of_a_data_set(tiny_clip, names, images):
    trainer = build(tiny_clip, names, dataset="UCF101")
    logits, *_ = reference(tiny_clip, trainer, images, names, after="person doing {}.")
    torch.testing.assert_close(trainer.model(images).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("OxfordPets", "X X X X {}, a type of pet."),
        ("DescribableTextures", "X X X X {} texture."),
        ("StanfordCars", "X X X X {}, a type of car"),
        ("UCF101", "X X X X person doing {}."),
        ("ImageNet", "X X X X {}."),
        ("EuroSAT", "X X X X {}."),
    ],
)
def test_student_sentences(tiny_clip, dataset, sentence):
    learner = build(tiny_clip, ["yin_yang"], N_CTX=4, dataset=dataset).model.learner
    assert torch.equal(learner.ids, clip.tokenize([sentence.format("yin yang")], vocab_size=VOCAB))
    assert learner.slots.tolist() == [1, 2, 3, 4]


def test_teacher_sentences(tiny_clip, names):
    teacher = build(tiny_clip, names, dataset="FGVCAircraft").model.learner.teacher
    for row, name in zip(teacher, names):
        expected = unit(text_feature(tiny_clip, f"a photo of an aircraft {name.replace('_', ' ')}.", []))
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_the_context_acts_through_the_blocks_before(tiny_clip, names, images):
    """Output of the block before at the context rows is dropped; the context still learns, through other rows."""
    trainer, outputs = build(tiny_clip, names), []

    def keep(module, inputs, output):
        output.retain_grad()
        outputs.append(output)

    handle = tiny_clip.transformer.resblocks[1].register_forward_hook(keep)
    sum(trainer.losses({"img": images, "label": LABELS}).values()).backward()
    handle.remove()
    assert outputs
    for output in outputs:
        assert torch.equal(output.grad[:, 1:4], torch.zeros_like(output.grad[:, 1:4]))
        assert float(output.grad[:, 4:].abs().max()) > 0
    assert float(trainer.model.learner.ctx.grad.abs().max()) > 0


def test_words_start_the_context(tiny_clip, names):
    learner = build(tiny_clip, names, CTX_INIT="a photo of a", noise=0.0).model.learner
    tokens = clip.tokenize("a photo of a", vocab_size=VOCAB)[0]
    tokens = tokens[1 : tokens.argmax()]
    assert torch.equal(learner.ctx, tiny_clip.token_embedding.weight[tokens])
    assert learner.meta_net.linear2.out_features == len(tokens) * 48


def test_parameters_on_vit_b16(wide_clip):
    learner = build(wide_clip, ["cat", "dog"], N_CTX=4, BLOCK=8, noise=0.0).model.learner
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {
        "ctx": (4, 512),
        "meta_net.linear1.weight": (128, 512),
        "meta_net.linear1.bias": (128,),
        "meta_net.linear2.weight": (2048, 128),
        "meta_net.linear2.bias": (2048,),
    }
    assert sum(p.numel() for p in learner.parameters()) == 331_904
    assert float(learner.ctx.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(learner.meta_net.linear1.weight.detach().abs().max()) <= 512**-0.5
    _, prompts = learner.text_prompts()
    assert [None if layer is None else tuple(layer.shape) for layer in prompts.layers] == [
        (4, 512),
        *[None] * 7,
        (2, 4, 512),
    ]


def test_bad_options_are_refused(tiny_clip, names):
    with pytest.raises(ValueError, match=r"TRAINER\.TCP\.N_CTX is 0, expected 1 or more\n +TRAINER\.TCP\.W is -1\.0"):
        build(tiny_clip, names, N_CTX=0, W=-1.0)
    for block, expected in ((0, "1 or more"), (4, "1 to 3")):
        with pytest.raises(ValueError, match=rf"TRAINER\.TCP\.BLOCK is {block}, expected {expected}"):
            build(tiny_clip, names, BLOCK=block)
