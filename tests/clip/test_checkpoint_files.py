"""Checkpoint files of every kind: what is read from them, and what is refused."""

import copy
import json
import os
import pickle
import re
import struct
import zipfile

import pytest
import torch
from clip_reference import HEADS, randomised
from PIL import Image
from safetensors.torch import load_file, safe_open, save_file

import clip
from clip.archive import read_file
from clip.checkpoints import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")

CLOSE = {"atol": 1e-6, "rtol": 1e-6}
WIDTHS = {"transformer_heads": 1, "vision_heads": 1}  # 64 wide: what is assumed without a word about heads


def same(model, path, images, ids, **options):
    """The model in the file gives the features of ``model``."""
    loaded, _ = clip.load(path, **options)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_image(images).pooled, model.encode_image(images).pooled, **CLOSE)
        torch.testing.assert_close(loaded.encode_text(ids).pooled, model.encode_text(ids).pooled, **CLOSE)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    return loaded


class Poison:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


# --- values that are no weights ---


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda w: w.int(), "of another type"),
        (lambda w: w.bool(), "of another type"),
        (lambda w: w.to(torch.complex64), "of another type"),
        (lambda w: w.to_sparse(), "expected dense"),
        (lambda w: torch.empty_like(w, device="meta"), "expected dense"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "expected dense"),
        (lambda w: w * float("nan"), "infinite numbers or NaN"),
        (lambda w: w / 0, "infinite numbers or NaN"),
        (lambda w: w[:0], "has shape"),
    ],
    ids=["int", "bool", "complex", "sparse", "meta", "quantized", "nan", "inf", "empty"],
)
def test_odd_weights_are_refused(make_clip, tmp_path, change, shown):
    state = make_clip().state_dict()
    torch.save({**state, "text_projection": change(state["text_projection"])}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=shown):
        clip.load(tmp_path / "odd.pt", quick_gelu=True)


def test_a_tensor_without_a_name_is_refused(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="names for its tensors"):
        clip.load(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "entry",
    [{"mean": 5}, {"mean": [1, 2]}, {"std": [0, 0, 0]}, {"std": [None, 1, 1]}, {"vision_heads": 0}, {"quick_gelu": 5},
     {"mean": [float("nan"), 0, 0]}, {"vision_heads": 1.5}],
    ids=str,
)  # fmt: skip
def test_metadata_without_a_meaning_are_refused(make_clip, tmp_path, entry):
    weights = {key: value.contiguous() for key, value in make_clip().state_dict().items()}
    info = {"quick_gelu": True, "vision_heads": HEADS, "transformer_heads": HEADS, **entry}
    save_file(weights, tmp_path / "m.safetensors", {key: json.dumps(value) for key, value in info.items()})
    with pytest.raises(ValueError, match="no setting of a CLIP"):
        clip.load(tmp_path / "m.safetensors")
    assert clip.input_of(tmp_path / "m.safetensors") is None


# --- our own files ---


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_saved_models_come_back_exactly(make_clip, tmp_path, images, ids, quick_gelu):
    model = make_clip(quick_gelu=quick_gelu)  # heads of 32, which the weights do not tell
    clip.save_model(model, tmp_path / "deep" / "m.safetensors", {"card": "a note", "epochs": 3})
    loaded = same(model, tmp_path / "deep" / "m.safetensors", images, ids)
    assert loaded.quick_gelu == quick_gelu
    assert loaded.visual.transformer.heads == loaded.transformer.heads == HEADS
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    with safe_open(tmp_path / "deep" / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["card"] == "a note"
    assert metadata["epochs"] == "3"
    assert metadata["quick_gelu"] == json.dumps(quick_gelu)
    assert os.listdir(tmp_path / "deep") == ["m.safetensors"]


def test_saved_in_half_precision(tiny, tmp_path, images):
    clip.save_model(tiny, tmp_path / "m.safetensors", dtype=torch.float16)
    stored = load_file(tmp_path / "m.safetensors")
    assert {v.dtype for v in stored.values() if v.dim() > 1} == {torch.float16}
    assert {v.dtype for v in stored.values() if v.dim() < 2} == {torch.float32}
    loaded, _ = clip.load(tmp_path / "m.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    cosine = torch.cosine_similarity(loaded.encode_image(images).pooled, tiny.encode_image(images).pooled)
    assert cosine.min() > 0.9999


def test_a_saved_resnet_comes_back(tiny_resnet, tmp_path, rng):
    clip.save_model(tiny_resnet, tmp_path / "m.safetensors")
    loaded, _ = clip.load(tmp_path / "m.safetensors")
    image = torch.randn(1, 3, 64, 64, generator=rng)
    torch.testing.assert_close(loaded.encode_image(image).pooled, tiny_resnet.encode_image(image).pooled, **CLOSE)


def test_metadata_may_not_contradict_the_model(tiny, tmp_path):
    with pytest.raises(ValueError, match="quick_gelu = False, the model has True"):
        clip.save_model(tiny, tmp_path / "m.safetensors", {"quick_gelu": False})
    assert os.listdir(tmp_path) == []


def test_preprocessing_of_the_metadata(tiny, tmp_path):
    clip.save_model(tiny, tmp_path / "m.safetensors", {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]})
    _, preprocess = clip.load(tmp_path / "m.safetensors")
    out = preprocess(Image.new("RGBA", (50, 40), (255, 0, 0, 255)))
    assert out.shape == (3, 32, 32)
    torch.testing.assert_close(out.amax((1, 2)), torch.tensor([2.0, -2.0, -2.0]))
    clip.save_model(tiny, tmp_path / "n.safetensors")
    _, preprocess = clip.load(tmp_path / "n.safetensors")
    assert preprocess(Image.new("L", (32, 32), 0))[0, 0, 0].item() == pytest.approx(-0.48145466 / 0.26862954)


# --- OpenAI's TorchScript archives ---


@pytest.fixture
def archive(make_clip, images, ids, tmp_path):
    """A real TorchScript archive in OpenAI's manner: traced, half precision, numbers as buffers."""
    model = make_clip(**WIDTHS)
    with torch.no_grad():
        for parameter in model.parameters():  # so that the cast below loses nothing
            parameter.copy_(parameter.half().float())
    original = copy.deepcopy(model)
    del original.context_length, original.vocab_size
    for name, number in (("input_resolution", 32), ("context_length", 24), ("vocab_size", 1000)):
        original.register_buffer(name, torch.tensor(number))
    traced = torch.jit.trace(original, (images, ids), check_trace=False)
    for parameter in traced.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half()
    traced.save(str(tmp_path / "ViT.pt"))
    return model, tmp_path / "ViT.pt"


def test_torchscript_archives_load_without_torchscript(archive, images, ids, monkeypatch, caplog):
    model, path = archive
    raw = read_file(path)
    assert raw.kind == "torchscript"
    assert raw.content.keys() == {*model.state_dict(), "input_resolution", "context_length", "vocab_size"}
    assert raw.content["visual.proj"].dtype == torch.float16

    def forbidden(*_, **__):
        raise AssertionError("TorchScript was run")

    monkeypatch.setattr(torch.jit, "load", forbidden)
    loaded = same(model, path, images, ids, jit=True)
    assert loaded.quick_gelu
    assert caplog.text == ""


def test_torchscript_keeps_declared_tensors_only(tmp_path):
    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 4).t())
            self.register_buffer("counted", torch.arange(4)[1:])
            self.mask = torch.ones(2)
            self.sizes = [1, 2]
            self.table = {"a": 1}

        def forward(self, x):
            return x @ self.weight.t() + self.mask.sum() + self.sizes[0] + self.table["a"] + self.counted.sum()

    module = torch.nn.Sequential(Part(), torch.nn.ReLU(), Part())
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    content = read_file(tmp_path / "m.pt").content
    expected = module.state_dict()
    assert content.keys() == expected.keys() == {"0.weight", "0.counted", "2.weight", "2.counted"}
    for key, value in expected.items():
        assert torch.equal(content[key], value)


def rewritten(path, target, changes):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            part = name.split("/", 1)[1]
            new.writestr(name, changes.get(part, old.read(name)))
    return target


def test_hostile_torchscript_is_refused(archive, tmp_path):
    _, path = archive
    marker = tmp_path / "ran"
    for i, payload in enumerate(
        [
            pickle.dumps(Poison(marker), protocol=2),
            b"\x80\x02cbuiltins\neval\n.",
            b"\x80\x02ctorch._utils\n_rebuild_parameter_with_state\n.",
            b"\x80\x02ctorch.jit._pickle\nos\n.",
        ]
    ):
        bad = rewritten(path, tmp_path / f"bad{i}.pt", {"data.pkl": payload})
        with pytest.raises(ValueError, match=rf"bad{i}\.pt is refused: its pickle names (posix\.system|\w+\.)"):
            clip.load(bad)
    assert not marker.exists()


def test_torchscript_with_altered_data_is_refused(archive, tmp_path):
    _, path = archive
    short = rewritten(path, tmp_path / "short.pt", {"data/0": b"\0\0"})
    with pytest.raises(ValueError, match=r"short\.pt is truncated or damaged.*2 bytes"):
        clip.load(short)
    odd = rewritten(path, tmp_path / "odd.pt", {"data.pkl": b"\x80\x02}."})
    with pytest.raises(ValueError, match=r"odd\.pt is truncated or damaged.*its data is a dict"):
        clip.load(odd)


# --- plain state dicts ---


def test_state_dict_files(make_clip, tmp_path, images, ids):
    model = make_clip(**WIDTHS)
    torch.save(model.state_dict(), tmp_path / "new.pt")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    for name in ("new.pt", "old.pt", "wrapped.pt"):
        with pytest.raises(ValueError, match=r"do not tell QuickGELU.*ViT-B-32/FILE for GELU, ViT-B-32-quickgelu/FILE"):
            clip.load(tmp_path / name)
        same(model, tmp_path / name, images, ids, quick_gelu=True)
    plain_gelu = make_clip(quick_gelu=False, **WIDTHS)
    same(plain_gelu, tmp_path / "new.pt", images, ids, quick_gelu=False)


def test_only_openai_s_numbers_tell_the_activation(make_clip, tmp_path, caplog):
    model = make_clip(**WIDTHS)
    torch.save(model.state_dict() | {"input_resolution": torch.tensor(32)}, tmp_path / "m.pt")
    clip.load(tmp_path / "m.pt")
    clip.convert_weights(model)
    torch.save(model.state_dict(), tmp_path / "half.pt")  # as an open_clip model trained in half precision
    with pytest.raises(ValueError, match="do not tell QuickGELU from GELU"):
        clip.load(tmp_path / "half.pt")
    torch.save(model.state_dict() | {"input_resolution": torch.tensor(32)}, tmp_path / "half.pt")
    clip.load(tmp_path / "half.pt")
    assert caplog.text == ""


@pytest.mark.parametrize("new_format", [True, False])
def test_hostile_pickles_are_refused(tiny, tmp_path, new_format):
    marker = tmp_path / "ran"
    torch.save(
        {**tiny.state_dict(), "extra": Poison(marker)},
        tmp_path / "bad.pt",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(ValueError, match=r"bad\.pt is refused: its pickle names (posix|nt)\.system"):
        clip.load(tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Poison(marker)))
    with pytest.raises(ValueError, match=r"raw\.pt"):
        clip.load(tmp_path / "raw.pt")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "torchscript"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.99])
def test_truncated_files_are_named(request, tiny, tmp_path, kind, kept):
    whole = tmp_path / "whole"
    if kind == "safetensors":
        clip.save_model(tiny, whole)
    elif kind == "torchscript":
        whole = request.getfixturevalue("archive")[1]
    else:
        torch.save(tiny.state_dict(), whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"cut\.pt is (truncated or damaged|not a checkpoint)"):
        clip.load(tmp_path / "cut.pt")


def test_files_of_other_kinds_are_named(tmp_path):
    (tmp_path / "a.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        clip.load(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        clip.load(tmp_path / "list.pt")
    torch.save({"epoch": 3, "fc.weight": torch.zeros(1)}, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match=r"mixed\.pt: a state dict holds tensors only.*epoch"):
        clip.load(tmp_path / "mixed.pt")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match=r"resnet\.pt: these are not CLIP weights.*fc\.weight"):
        clip.load(tmp_path / "resnet.pt")
    with pytest.raises(FileNotFoundError, match="missing"):
        clip.load(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match=r"'ViT-B/99' is neither a file nor one of the models RN50, .*emoji-ViT-S/8"):
        clip.load("ViT-B/99")
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors"):
        clip.load(tmp_path)


def test_safetensors_header_too_long_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or damaged"):
        clip.load(tmp_path / "a.safetensors")


def test_weights_that_do_not_fit_are_listed(tiny):
    weights = tiny.state_dict()
    extra = weights | {"visual.head.weight": torch.zeros(2), "logit_bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"2 unexpected: visual\.head\.weight, logit_bias"):
        clip.build_model(extra)
    with pytest.raises(ValueError, match=r"1 missing: visual\.ln_post\.bias"):
        clip.build_model({k: v for k, v in weights.items() if k != "visual.ln_post.bias"})
    with pytest.raises(ValueError, match=r"1 of another shape: ln_final\.bias \(3,\) instead of \(64,\)"):
        clip.build_model(weights | {"ln_final.bias": torch.zeros(3)})
    gap = {k: v for k, v in weights.items() if "visual.transformer.resblocks.1." not in k}
    with pytest.raises(ValueError, match=r"12 missing: .* and 7 more"):
        clip.build_model(gap)
    with pytest.raises(ValueError, match=r"text_projection is missing"):
        clip.build_model({k: v for k, v in weights.items() if k != "text_projection"})
    with pytest.raises(ValueError, match=r"18 image positions"):
        clip.build_model(weights | {"visual.positional_embedding": torch.zeros(18, 64)})
    with pytest.raises(ValueError, match="not 4 dimensions"):
        clip.build_model(weights | {"visual.conv1.weight": torch.zeros(18, 64)})


# --- open_clip ---


def open_clip_folder(folder, model, config, name="open_clip_pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(model.state_dict(), folder / name)
    else:
        torch.save(model.state_dict(), folder / name)
    if config is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder / name


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "other.pt"])
@pytest.mark.parametrize("quick_gelu", [True, False, None])
def test_open_clip_files_with_their_configuration(make_clip, tmp_path, images, ids, quick_gelu, name):
    model = make_clip(quick_gelu=bool(quick_gelu))
    config = {
        "model_cfg": {"embed_dim": 32, "vision_cfg": {"head_width": 32}, "text_cfg": {"heads": HEADS}},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    if quick_gelu is not None:
        config["model_cfg"]["quick_gelu"] = quick_gelu
    path = open_clip_folder(tmp_path, model, config, name)
    same(model, path, images, ids)
    assert load_checkpoint(path)[1].mean == (0.1, 0.2, 0.3)
    if name != "other.pt":
        same(model, tmp_path, images, ids)


def test_open_clip_resnet_heads(tiny_resnet, make_clip, tmp_path):
    config = {"model_cfg": {"vision_cfg": {"layers": [1, 2, 1, 1], "head_width": 128}, "text_cfg": {"heads": 2}}}
    path = open_clip_folder(tmp_path, tiny_resnet, config)
    assert clip.load(path)[0].visual.attnpool.heads == 2


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "model.safetensors"])
def test_open_clip_files_without_a_configuration_need_the_argument(make_clip, tmp_path, images, ids, name):
    path = open_clip_folder(tmp_path, make_clip(**WIDTHS), None, name)
    with pytest.raises(ValueError, match="do not tell QuickGELU from GELU"):
        clip.load(path)
    same(make_clip(quick_gelu=False, **WIDTHS), path, images, ids, quick_gelu=False)
    same(make_clip(quick_gelu=True, **WIDTHS), path, images, ids, quick_gelu=True)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("vision_cfg", {"pool_type": "avg"}),
        ("vision_cfg", {"timm_model_name": "vit_base"}),
        ("text_cfg", {"no_causal_mask": True}),
        ("text_cfg", {"qk_norm": True}),
    ],
)
def test_open_clip_configurations_that_no_model_has_are_named(tiny, tmp_path, part, setting):
    pytest.importorskip("open_clip")
    path = open_clip_folder(tmp_path, tiny, {"model_cfg": {part: setting}})
    with pytest.raises(ValueError, match=next(iter(setting))):
        clip.load(path)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("logit_bias", "SigLIP"),
        ("vision_model.head.probe", "SigLIP"),
        ("text.cls_emb", "CoCa"),
        ("text.transformer.embeddings.word_embeddings.weight", "text tower of Hugging Face"),
        ("visual.trunk.blocks.0.mlp.fc1_g.weight", "EVA-CLIP"),
        ("visual.trunk.blocks.0.attn.q_bias", "EVA-CLIP"),
        ("visual.trunk.attn_pool.latent", "PE-Core"),
        ("visual.trunk.patch_embed.backbone.stages.0.0.pre_norm.weight", "ViTamin"),
        ("visual.trunk.stem.0.conv_kxk.0.bn.weight", "MobileCLIP"),
        ("visual.trunk.patch_embed.backbone.0.bn.weight", "MobileCLIP"),
        ("visual.trunk.stem.0.weight", "image tower of timm"),
    ],
)
def test_relatives_of_clip_are_refused_by_name(tiny, tmp_path, key, family):
    """One parameter name of each is added to CLIP's; the names are those of open_clip 3.3 and transformers."""
    torch.save({**tiny.state_dict(), key: torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt: this is an? .*{family}.*{re.escape(key)}.*ViT-B-16-SigLIP/FILE"):
        clip.load(tmp_path / "other.pt")


def test_broken_configuration_is_named(tiny, tmp_path):
    path = open_clip_folder(tmp_path, tiny, None)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not JSON"):
        clip.load(path)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        clip.load(path)


# --- Hugging Face ---


@pytest.fixture
def huggingface(tmp_path):
    transformers = pytest.importorskip("transformers")
    towers = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
    }
    config = transformers.CLIPConfig(
        text_config=towers | {"vocab_size": 1000, "bos_token_id": 998, "eos_token_id": 999},
        vision_config=towers | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    model = randomised(transformers.CLIPModel(config)).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_huggingface_folders(huggingface, images, ids):
    theirs, folder = huggingface
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.1] * 3}))
    loaded, info = load_checkpoint(folder)
    assert info.quick_gelu is False
    assert info.mean == (0.5, 0.5, 0.5)
    assert loaded.visual.transformer.heads == loaded.transformer.heads == HEADS
    with torch.no_grad():
        expected = theirs.visual_projection(theirs.vision_model(pixel_values=images).pooler_output)
        torch.testing.assert_close(loaded.encode_image(images).pooled, expected, atol=1e-5, rtol=1e-5)
        expected = theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output)
        torch.testing.assert_close(loaded.encode_text(ids).pooled, expected, atol=1e-5, rtol=1e-5)
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    again, _ = clip.load(folder / "pytorch_model.bin")
    torch.testing.assert_close(again.state_dict(), loaded.state_dict())


def test_huggingface_activation_comes_from_the_configuration(huggingface):
    _, folder = huggingface
    config = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = "quick_gelu"
    (folder / "config.json").write_text(json.dumps(config))
    assert clip.load(folder)[0].quick_gelu
    config["text_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"activations \['quick_gelu', 'relu'\]"):
        clip.load(folder)
    config["text_config"] |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="layer_norm_eps"):
        clip.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="do not tell QuickGELU from GELU"):
        clip.load(folder)
    assert not clip.load(folder, quick_gelu=False)[0].quick_gelu


# --- build_model ---


def test_build_model_copies_and_draws_nothing(tiny):
    weights = tiny.state_dict()
    before = torch.random.get_rng_state()
    model = clip.build_model(weights, quick_gelu=True, vision_heads=HEADS, transformer_heads=HEADS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(p.is_meta for p in model.state_dict().values())
    with torch.no_grad():
        model.visual.proj.zero_()
    assert weights["visual.proj"].abs().sum() > 0
    assert all(p.requires_grad for p in model.parameters())


def test_design_details(make_clip, images, caplog):
    weights = make_clip(**WIDTHS).state_dict()
    plain = clip.build_model(weights)
    for name in ("CoOp", "CoCoOp", "IVLP", "VPT", "MaPLe", "UnifiedNP", "MMP", "SomeNet"):
        model = clip.build_model(weights, {"trainer": name, "vision_depth": 0, "vision_ctx": 0})
        assert torch.equal(model.encode_image(images).pooled, plain.encode_image(images).pooled)
    assert caplog.text == ""
    clip.build_model(weights, {"trainer": "IVLP", "vision_depth": 9, "vision_ctx": 4})
    assert "clip.Prompts" in caplog.text
