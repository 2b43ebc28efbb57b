"""A trainer written for Dassl and the CoOp repository runs, its own encoder on the parts of our CLIP."""

import json
from pathlib import Path

import pytest
import torch

import clip
import train
from clip import clip as old_clip
from clip import legacy
from dassl.engine import command as command_module
from tests.short_options import short_run
from tests.tolerance import assert_close

FILE = str(Path(__file__).with_name("shifted_coop.py"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Converted weights go below HOME; the vocabulary of old code is that of the last model."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(old_clip, "_vocabulary", old_clip.VOCAB_SIZE)


@pytest.fixture(params=["vit", "resnet"])
def tiny(request):
    torch.manual_seed(0)
    resnet = request.param == "resnet"
    model = clip.CLIP(
        embed_dim=32,
        image_resolution=64,
        vision_layers=(1, 1, 1, 1) if resnet else 3,
        vision_width=4 if resnet else 64,
        vision_patch_size=None if resnet else 16,
        context_length=77,
        vocab_size=2048,
        transformer_width=32,
        transformer_heads=2,
        transformer_layers=3,
        quick_gelu=False,
        vision_heads=2,
    )
    return model.eval()


@pytest.fixture
def file(tiny, tmp_path):
    clip.save_model(tiny, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def old(file):
    path = old_clip._download(old_clip._MODELS[file])
    with pytest.raises(RuntimeError):
        torch.jit.load(path, map_location="cpu")
    return old_clip.build_model(torch.load(path, map_location="cpu")).float()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_part_called_the_old_way_gives_the_features_of_the_new_way(tiny, file, rng):
    model = old(file)
    assert model.state_dict().keys() == tiny.state_dict().keys()
    assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in model.state_dict().items())
    assert isinstance(model, clip.CLIP)
    images = torch.randn(2, 3, 64, 64, generator=rng)
    ids = old_clip.tokenize(["a cat", "a very long dog."])
    assert torch.equal(ids, clip.tokenize(["a cat", "a very long dog."], vocab_size=2048))
    x = model.token_embedding(ids).type(model.dtype) + model.positional_embedding.type(model.dtype)
    with torch.no_grad():
        image, text = tiny.encode_image(images).pooled, tiny.encode_text(ids).pooled
        by_stack = model.transformer(x.permute(1, 0, 2))
        by_sequential = model.transformer.resblocks(x.permute(1, 0, 2))
        by_block = x.permute(1, 0, 2)
        for block in model.transformer.resblocks:
            by_block = block(by_block)
        for y in (by_stack, by_sequential, by_block):
            y = model.ln_final(y.permute(1, 0, 2)).type(model.dtype)
            found = y[torch.arange(len(y)), ids.argmax(dim=-1)] @ model.text_projection
            assert_close(found, text)
        for found in (model.visual(images), model.encode_image(images)):
            torch.testing.assert_close(found, image, rtol=0, atol=0)
        torch.testing.assert_close(model.encode_text(ids), text, rtol=0, atol=0)
        assert_close(model(images, ids)[0], tiny(images, ids)[0])
        assert_close(model(images, ids)[1], tiny(images, ids)[1])


def test_the_image_transformer_is_sequence_first_without_a_mask(tiny, file, rng):
    if not hasattr(tiny.visual, "transformer"):
        pytest.skip("a ResNet has none")
    x = torch.randn(2, 17, 64, generator=rng)
    with torch.no_grad():
        found = old(file).visual.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        torch.testing.assert_close(found, tiny.visual.transformer(x))


@pytest.mark.parametrize("tiny", ["vit"], indirect=True)
def test_half_precision_where_there_is_a_gpu(tiny, file, rng, monkeypatch):
    path = old_clip._download(file)
    weights = torch.load(path)
    assert old_clip.build_model(weights).dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = old_clip.build_model(weights)
    assert model.dtype == model.text_projection.dtype == torch.float16
    assert model.token_embedding.weight.dtype == model.ln_final.weight.dtype == torch.float32
    ids = old_clip.tokenize(["a cat", "a very long dog."])
    x = model.token_embedding(ids).type(model.dtype) + model.positional_embedding.type(model.dtype)
    with torch.no_grad():
        y = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)).type(model.dtype)
        found = y[torch.arange(len(y)), ids.argmax(dim=-1)] @ model.text_projection
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), tiny.encode_text(ids).pooled, rtol=0.02, atol=0.01)


def test_the_mask_is_the_causal_one(file):
    mask = old(file).build_attention_mask()
    assert mask.shape == (77, 77)
    for i, j in ((0, 0), (5, 5), (5, 2)):
        assert mask[i, j] == 0
    assert mask[2, 5] == -torch.inf


def test_other_models_of_the_process_stay_as_they_are(tiny, file, rng):
    images = torch.randn(2, 3, 64, 64, generator=rng)
    old(file)
    loaded, _ = clip.load(file)
    assert type(loaded) is clip.CLIP
    assert torch.equal(loaded.encode_image(images).pooled, tiny.encode_image(images).pooled)


def test_old_load_returns_tensors(tiny, file, rng):
    images = torch.randn(2, 3, 64, 64, generator=rng)
    model, transform = old_clip.load(file, device="cpu")
    assert torch.equal(model.encode_image(images), tiny.encode_image(images).pooled)
    assert callable(transform)


def test_names_of_models(monkeypatch, file):
    assert old_clip._MODELS["ViT-B/16"].startswith("https://")
    assert old_clip._MODELS["emoji-ViT-S/8"].endswith(".safetensors")
    with pytest.raises(KeyError, match="'ViT-B/17' is neither a file nor one of the models RN50"):
        old_clip._MODELS["ViT-B/17"]
    assert old_clip._download(file) == old_clip._download(file)


def test_a_short_vocabulary_is_announced(file, caplog):
    old(file)
    assert "2048 of the 49408 tokens" in caplog.text
    weights = torch.load(old_clip._download(file))
    assert {name: int(weights[name]) for name in legacy.FACTS if name in weights} == {
        "quick_gelu": 0,
        "vision_heads": 2,
        "transformer_heads": 2,
    }


@pytest.fixture
def run(tmp_path, file, monkeypatch, few_emoji, pictures_root):
    """Runs a trainer on one style of EmojiGroups; returns the result and the trainer."""
    built, build = [], command_module.build_trainer

    def keep(cfg):
        built.append(build(cfg))
        return built[-1]

    monkeypatch.setattr(command_module, "build_trainer", keep)

    def start(name, output, *flags, options=()):
        own = {"OPTIM.MAX_EPOCH": 4, "TRAINER.COOP.PREC": "fp32", "TRAINER.COOP.CTX_INIT": "a photo of a"}
        pairs = short_run(tmp_path, file, **own)
        arguments = ["--import", FILE, "--root", pictures_root, "--trainer", name, "--seed", "1"]
        result = train.main([*arguments, "--output-dir", str(tmp_path / output), *flags, *pairs, *map(str, options)])
        return result, built[-1]

    return start


def first_logits(trainer):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(next(iter(trainer.test_loader))["img"])


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["vit"], indirect=True)
def test_train_evaluate_and_load(run, tmp_path):
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    result, trained = run("ShiftedCoOp", "run", options=base)
    assert result["method"] == "ShiftedCoOp"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "epoch"]
    assert losses[-1] < losses[0]
    assert trained.model.prompt_learner.shift.abs().max() > 0

    where = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    again, loaded = run("ShiftedCoOp", "again", *where, options=base)
    assert again["accuracy"] == result["accuracy"]
    torch.testing.assert_close(first_logits(loaded), first_logits(trained), rtol=0, atol=0)
    new, loaded = run("ShiftedCoOp", "new", *where, options=["DATASET.SUBSAMPLE_CLASSES", "new"])
    assert new["counts"]["classes"] == first_logits(loaded).shape[1] == 7
    assert torch.equal(loaded.model.prompt_learner.ctx, trained.model.prompt_learner.ctx)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["a photo of a", ""])
def test_logits_at_the_start_are_those_of_our_coop(run, words):
    options = ["TRAINER.COOP.CTX_INIT", words, "TRAINER.COOP.N_CTX", 3]
    _, theirs = run("ShiftedCoOp", "theirs", "--eval-only", options=options)
    _, ours = run("CoOp", "ours", "--eval-only", options=options)
    if not words:  # both are random: compare with the same vectors
        with torch.no_grad():
            theirs.model.prompt_learner.ctx.copy_(ours.model.learner.ctx)
    expected = first_logits(ours)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(first_logits(theirs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["vit"], indirect=True)
def test_mixed_precision_and_own_options(run):
    _, trainer = run("ShiftedCoOp", "run", options=["TRAINER.COOP.PREC", "amp", "OPTIM.MAX_EPOCH", 1])
    assert trainer.scaler is not None
    _, trainer = run("ShiftedCoOp", "own", options=["TRAINER.SHIFTED.SCALE", 0.5, "OPTIM.MAX_EPOCH", 1])
    assert trainer.model.scale == 0.5
    with pytest.raises(SystemExit):
        run("ShiftedCoOp", "bad", options=["TRAINER.SHIFTED.SCALES", 0.5])


def test_extend_cfg_may_replace_a_section(tmp_path):
    """As in the train.py of the CoOp repository; what it leaves out keeps its default."""
    (tmp_path / "own.py").write_text(
        "from yacs.config import CfgNode as CN\n"
        "def extend_cfg(cfg):\n"
        "    cfg.TRAINER.COOP = CN()\n"
        "    cfg.TRAINER.COOP.N_CTX = 7\n"
        "    cfg.TRAINER.OWN = CN()\n"
        "    cfg.TRAINER.OWN.RATE = 0.5\n"
    )
    flags = ["--import", str(tmp_path / "own.py"), "TRAINER.OWN.RATE", "2"]
    cfg = train.build_config(train.build_parser().parse_args(flags))
    assert (cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.CLASS_TOKEN_POSITION, cfg.TRAINER.OWN.RATE) == (7, "end", 2.0)
    (tmp_path / "bad.py").write_text("def extend_cfg(cfg):\n    cfg.TRAINER.NOTHING.N_CTX = 7\n")
    with pytest.raises(ImportError, match=r"extend_cfg\(\) of '.*bad.py' fails: AttributeError: NOTHING"):
        train.build_config(train.build_parser().parse_args(["--import", str(tmp_path / "bad.py")]))
