"""PLOT++ against loops over images, classes and prompts; prefixes, the two stages, the released quirk."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
import train
from dassl.engine import command as command_module
from tests.short_options import short_run
from trainers.base import PromptedCLIP
from trainers.parts.templates import PREFIXES, prefixes_for
from trainers.plot_pp import PLOTPP, TwoSidedModes

PHRASES = ("a photo of a", "this is a photo", "this is a picture of", "one picture of a")
COARSE = ["STOP", "scaling_change"]
EXACT = ["STOP", "marginal", "THRESHOLD", 1e-6, "MAX_ITER", 3000]


def build(model, names, *options, dataset="Caltech101", enlarge=True):
    trainer = object.__new__(PLOTPP)
    trainer.cfg = CfgNode({"TRAINER": PLOTPP.defaults(), "DATASET": {"NAME": dataset}})
    trainer.cfg.TRAINER.PLOTPP.merge_from_list(list(options))
    trainer.check_cfg(trainer.cfg)
    torch.manual_seed(1)
    learner = trainer.build_learner(model, names)
    with torch.no_grad():
        for name, parameter in learner.named_parameters() if enlarge else ():
            parameter.add_((3 if name == "ctx_vision" else 0.1) * torch.randn_like(parameter))
    trainer.model = PromptedCLIP(model, learner, trainer.build_score(learner))
    return trainer


def text_feature(model, sentence, vectors):
    """Feature of a sentence whose positions 1..n are `vectors`, all positions up to the context length run."""
    ids = clip.tokenize([sentence], vocab_size=model.vocab_size)[0]
    x = model.token_embedding.weight[ids]
    x = torch.cat([x[:1], vectors, x[1 + len(vectors) :]]) + model.positional_embedding
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for block in model.transformer.resblocks:
        x = block(x[None], mask)[0]
    return model.ln_final(x[ids.tolist().index(model.vocab_size - 1)]) @ model.text_projection


def image_feature(model, image, vectors):
    visual = model.visual
    x = torch.cat([visual.class_embedding[None], visual.conv1(image[None])[0].flatten(1).T])
    x = visual.ln_pre(torch.cat([x + visual.positional_embedding, vectors]))
    for block in visual.transformer.resblocks:
        x = block(x[None])[0]
    return visual.ln_post(x[0]) @ visual.proj


def plain_logits(model, learner, phrases, images, names, pooled, released):
    scale, similarities, means = model.logit_scale.exp(), [], []
    for image in images:
        ours = [image_feature(model, image, vectors) for vectors in learner.ctx_vision]
        for name in names:
            theirs = [
                text_feature(model, f"{phrase} {name.replace('_', ' ')}.", vectors)
                for phrase, vectors in zip(phrases, learner.ctx)
            ]
            rows = [torch.stack([(f / f.norm()) @ (w / w.norm()) for w in theirs]) for f in ours]
            similarities.append(torch.stack(rows))
            f, w = sum(ours) / len(ours), sum(theirs) / len(theirs)
            means.append((f / f.norm()) @ (w / w.norm()))
    kernels = [torch.exp(-(1 - s.detach()) / 0.1) for s in similarities]
    m, n = kernels[0].shape
    r, c = [torch.ones(m)] * len(kernels), [torch.ones(n)] * len(kernels)
    for _ in range(100 if released else 3000):
        before = torch.stack(r)
        r = [1 / m / (kernel @ column) for kernel, column in zip(kernels, c)]
        c = [1 / n / (kernel.T @ row) for kernel, row in zip(kernels, r)]
        if released and (torch.stack(r) - before).abs().mean() < 0.01:
            break
    logits = [(row[:, None] * k * column * s).sum() for row, k, column, s in zip(r, kernels, c, similarities)]
    if pooled:
        logits = [logit + mean for logit, mean in zip(logits, means)]
    return scale * torch.stack(logits).view(len(images), len(names))


@pytest.mark.parametrize("stage", ["vision", "joint"])
@pytest.mark.parametrize("rule", [COARSE, EXACT], ids=["released", "exact"])
def test_logits_and_gradients_are_those_of_the_loops(tiny_clip, names, rng, stage, rule):
    images, names = torch.randn(2, 3, 32, 32, generator=rng), names[:3]
    trainer = build(tiny_clip, names, "CTX_INIT", PHRASES, "M", 3, "MODEL_UPD", stage, *rule)
    learner, label = trainer.model.learner, torch.tensor([0, 2])
    learned = dict(learner.named_parameters())
    assert set(learned) == ({"ctx_vision"} if stage == "vision" else {"ctx", "ctx_vision"})
    found = trainer.model(images).logits
    expected = plain_logits(tiny_clip, learner, PHRASES, images, names, stage == "vision", rule is COARSE)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    own = torch.autograd.grad(F.cross_entropy(found, label), learned.values())
    reference = torch.autograd.grad(F.cross_entropy(expected, label), learned.values())
    for one, other in zip(own, reference):
        assert float(other.abs().amax(dim=(1, 2)).min()) > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_the_pooled_term_belongs_to_stage_1_unless_said_otherwise(tiny_clip, names, rng):
    images = torch.randn(2, 3, 32, 32, generator=rng)
    with torch.no_grad():
        logits = {
            (stage, trade_off): build(
                tiny_clip, names, "CTX_INIT", PHRASES, "MODEL_UPD", stage, "TRADE_OFF", trade_off, enlarge=False
            )
            .model(images)
            .logits
            for stage in ("vision", "joint")
            for trade_off in (None, True, False)
        }
    assert torch.equal(logits["vision", None], logits["vision", True])
    assert torch.equal(logits["joint", None], logits["joint", False])
    for trade_off in (True, False):  # before training, the stages differ in nothing else
        assert torch.equal(logits["vision", trade_off], logits["joint", trade_off])
    assert not torch.allclose(logits["vision", True], logits["vision", False])


def test_at_the_start_the_sentences_are_the_phrases(tiny_clip, names):
    learner = build(tiny_clip, names, "CTX_INIT", PHRASES, enlarge=False).model.learner
    ids, prompts = learner.text_prompts()
    texts = [f"{phrase} {name.replace('_', ' ')}." for name in names for phrase in PHRASES]
    plain = clip.tokenize(texts, vocab_size=tiny_clip.vocab_size)
    assert torch.equal(ids, plain)
    with torch.no_grad():
        found, expected = tiny_clip.encode_text(ids, prompts).pooled, tiny_clip.encode_text(plain).pooled
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_words_beyond_the_context_stay_frozen(tiny_clip):
    """The third phrase has a fifth token; the fourth context vector stands before it."""
    learner = build(tiny_clip, ["cat"], "CTX_INIT", PHRASES).model.learner
    ids, prompts = learner.text_prompts()
    assert prompts.layers[0].shape[1] == 4
    words = clip.tokenize(["of cat."], vocab_size=tiny_clip.vocab_size)[0, 1:4]
    assert torch.equal(ids[2, 5:8], words)


def test_prefixes_of_the_table():
    sizes = {"DescribableTextures": 5, "EuroSAT": 5, "FGVCAircraft": 5, "Food101": 5, "OxfordFlowers": 5}
    sizes |= {"OxfordPets": 5, "UCF101": 6, "Caltech101": 4, "SUN397": 4, "StanfordCars": 4, "ImageNet": 4, "Mine": 4}
    assert set(PREFIXES) < set(sizes)
    for dataset, size in sizes.items():
        for released in (False, True):
            prefixes = prefixes_for(dataset, released)
            tokens = [int(ids.argmax()) - 1 for ids in clip.tokenize(list(prefixes))]
            assert len(prefixes) == 4
            assert tokens[0] == size
            assert tokens == [len(prefix.split()) for prefix in prefixes]
            assert (min(tokens) < size) == (released and dataset == "ImageNet")
    assert prefixes_for("ImageNetV2", True)[2] == "this is a"
    assert prefixes_for("ImageNetV2")[2] == "this is picture of"


def test_the_shortest_prefix_sets_the_number_of_vectors(tiny_clip, names):
    phrases = ("a photo of a", "this is a")
    learner = build(tiny_clip, names, "CTX_INIT", phrases, enlarge=False).model.learner
    assert learner.ctx.shape[:2] == (2, 3)
    ids, prompts = learner.text_prompts()
    texts = [f"{phrase} {name.replace('_', ' ')}." for name in names for phrase in phrases]
    with torch.no_grad():
        found = tiny_clip.encode_text(ids, prompts).pooled
        expected = tiny_clip.encode_text(clip.tokenize(texts, vocab_size=tiny_clip.vocab_size)).pooled
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_prefix_may_be_a_text_and_none_may_be_empty(tiny_clip, names):
    trainer = build(tiny_clip, names)
    for init in ("a photo of a", ["a photo of a"]):
        trainer.cfg.TRAINER.PLOTPP["CTX_INIT"] = init
        assert trainer.build_learner(tiny_clip, names).ctx.shape[:2] == (1, 4)
    trainer.cfg.TRAINER.PLOTPP["CTX_INIT"] = ["a photo of a", ""]
    with pytest.raises(ValueError, match=r"CTX_INIT is \['a photo of a', ''\], expected one prefix or several"):
        trainer.build_learner(tiny_clip, names)


def test_a_prefix_that_is_too_short_covers_the_name_in_released_mode_only(tiny_clip):
    names = ["man", "the", "a"]  # one token each
    trainer = build(tiny_clip, names, "RELEASED_PREFIXES", True, dataset="ImageNet", enlarge=False)
    learner = trainer.model.learner
    end = tiny_clip.token_embedding.weight[tiny_clip.vocab_size - 1]
    torch.testing.assert_close(learner.ctx[2, 3], end)
    with torch.no_grad():
        features = trainer.model.encode_text().pooled.unflatten(0, (3, 4))
    torch.testing.assert_close(features[0, 2], features[1, 2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features[0, 2], features[2, 2], rtol=1e-5, atol=1e-5)
    for mode in (0, 1, 3):
        assert not torch.allclose(features[0, mode], features[1, mode], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("size", "count"), [(4, 14_336), (5, 16_384), (6, 18_432)])
def test_parameters_on_vit_b16(size, count):
    words = ["a", "photo", "of", "a", "person", "doing"][:size]
    with torch.device("meta"):
        model = clip.CLIP(512, 224, 1, 768, 16, 77, 49408, 512, 8, 1)
    model.token_embedding = torch.nn.Embedding(49408, 512)  # real, since the phrases are looked up
    learner = TwoSidedModes(model, ["cat"], [" ".join(words)] * 4, vision_modes=4, n_vision=2, learn_text=True)
    assert {name: tuple(p.shape) for name, p in learner.named_parameters()} == {
        "ctx": (4, size, 512),
        "ctx_vision": (4, 2, 768),
    }
    assert sum(p.numel() for p in learner.parameters()) == count
    assert float(learner.ctx_vision.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_both_stages_have_the_same_entries_in_a_checkpoint(tiny_clip, names):
    first = build(tiny_clip, names, "CTX_INIT", PHRASES, "MODEL_UPD", "vision").model.learner
    second = build(tiny_clip, names, "CTX_INIT", PHRASES, "MODEL_UPD", "joint").model.learner
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in second.state_dict().items()}
    second.load_state_dict(first.state_dict())
    assert not first.class_bound


def test_stage_2_starts_from_stage_1(tiny_clip, names, tmp_path, monkeypatch, caplog):
    calls = []
    base = PLOTPP.__mro__[1]
    monkeypatch.setattr(base, "before_train", lambda self: calls.append("resume"))
    monkeypatch.setattr(base, "load_model", lambda self, directory, epoch: calls.append((directory, epoch)))
    folder = tmp_path / "prompt_learner"
    folder.mkdir()
    (folder / "checkpoint").write_text("model.pth.tar-7")
    (folder / "model.pth.tar-7").touch()
    build(tiny_clip, names, "CTX_INIT", PHRASES, "PRETRAIN_DIR", str(tmp_path)).before_train()
    assert calls == [(str(tmp_path), 7), "resume"]
    (folder / "model-best.pth.tar").touch()
    build(tiny_clip, names, "CTX_INIT", PHRASES, "PRETRAIN_DIR", str(tmp_path)).before_train()
    assert calls[2:] == [(str(tmp_path), None), "resume"]
    with caplog.at_level(logging.WARNING):
        build(tiny_clip, names, "CTX_INIT", PHRASES).before_train()
    assert "without a stage 1" in caplog.text


def test_bad_options_are_refused(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)M is 0.*MODEL_UPD is 'text'.*TRADE_OFF is 'yes'.*MAX_ITER is 0"):
        build(tiny_clip, names, "M", 0, "MODEL_UPD", "text", "TRADE_OFF", "yes", "MAX_ITER", 0)
    with pytest.raises(ValueError, match="PRETRAIN_DIR is set, but stage 1"):
        build(tiny_clip, names, "MODEL_UPD", "vision", "PRETRAIN_DIR", "somewhere")
    resnet = SimpleNamespace(visual=clip.CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 600, 32, 2, 1).visual)
    with pytest.raises(ValueError, match="need a vision transformer, but the image tower is a ModifiedResNet"):
        TwoSidedModes(resnet, names, PHRASES, vision_modes=1, n_vision=1, learn_text=True)


@pytest.mark.slow
def test_both_stages_from_the_command_line(tiny_clip, tmp_path, monkeypatch, few_emoji, pictures_root):
    clip.save_model(tiny_clip, tmp_path / "tiny.safetensors")
    own = {"INPUT.SIZE": "(32, 32)", "OPTIM.LR": 0.1, "OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True}
    pairs = short_run(tmp_path, tmp_path / "tiny.safetensors", **own)
    flags = ["--root", pictures_root, "--trainer", "PLOTPP", "--seed", "1"]
    built, build_trainer = [], command_module.build_trainer
    monkeypatch.setattr(command_module, "build_trainer", lambda cfg: built.append(build_trainer(cfg)) or built[-1])
    one, two = tmp_path / "one", tmp_path / "two"
    train.main([*flags, "--output-dir", str(one), *pairs, "TRAINER.PLOTPP.MODEL_UPD", "vision"])
    start = {}
    monkeypatch.setattr(PLOTPP, "before_epoch", lambda self: start.update(clone(self)))

    def clone(trainer):
        return {name: value.clone() for name, value in trainer.model.learner.state_dict().items()}

    stage_2 = ["TRAINER.PLOTPP.PRETRAIN_DIR", str(one)]
    result = train.main([*flags, "--output-dir", str(two), *pairs, *stage_2])
    first, second = (trainer.model.learner for trainer in built)
    assert torch.equal(start["ctx_vision"], first.ctx_vision)
    assert torch.equal(start["ctx"], first.ctx)
    assert not torch.equal(second.ctx_vision, first.ctx_vision)
    assert not torch.equal(second.ctx, first.ctx)
    assert result["trainable_parameters"] == 4 * 4 * 48 + 4 * 2 * 64
