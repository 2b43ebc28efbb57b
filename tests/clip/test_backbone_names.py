"""Names of backbones: what they stand for, what is fetched, and the errors. Nothing is downloaded."""

import importlib
import json

import foreign_models as foreign
import pytest
import torch
from safetensors.torch import save_file

import clip
from clip.api import find_backbone
from tests.tolerance import assert_close

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed: pip install open_clip_torch")
hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
httpx = pytest.importorskip("httpx", reason="httpx, which huggingface_hub uses, is not installed")
pytest.importorskip("huggingface_hub.errors")
pytest.importorskip("timm", reason="timm is not installed: pip install timm")


@pytest.fixture(scope="module", autouse=True)
def small():
    with foreign.small_timm():
        yield


@pytest.fixture
def architecture(monkeypatch):
    """Gives a small architecture and its tags to open_clip, and fetches files from a folder."""

    def add(name, folder, tags=(), **tag):
        registry = open_clip.factory._MODEL_CONFIGS
        monkeypatch.setitem(registry, name, foreign.OPEN_CLIP[name] | tag.pop("config", {}))
        known = {one: {"hf_hub": "someone/weights/", **tag} for one in tags}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, known)
        fetched = []

        def download(cfg, **_):
            fetched.append(cfg)
            return str(folder / "open_clip_model.safetensors")

        monkeypatch.setattr(open_clip, "download_pretrained", download)
        return fetched

    return add


def test_an_architecture_with_a_tag(architecture, tmp_path):
    theirs = foreign.of_open_clip("EVA02-B-16")
    folder = foreign.saved_open_clip(theirs, "EVA02-B-16", tmp_path / "cache")
    fetched = architecture(
        "EVA02-B-16", folder, ["merged"], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize_mode="squash"
    )
    found = clip.input_of("EVA02-B-16/merged")
    assert found == clip.Input(foreign.SIDE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize="squash")
    assert not fetched
    model, transform = clip.load("EVA02-B-16/merged")
    assert clip.Input.of(transform) == found
    assert [one["hf_hub"] for one in fetched] == ["someone/weights/"]
    image = torch.randn(1, 3, foreign.SIDE, foreign.SIDE)
    with torch.no_grad():
        assert_close(model.encode_image(image).pooled, theirs.encode_image(image))
    with pytest.raises(ValueError, match=r"'EVA02-B-16/merge': 'merge' is neither a file nor a tag .* has merged"):
        clip.load("EVA02-B-16/merge")


def test_an_architecture_with_a_file(architecture, tmp_path):
    """The images are those that all published weights of the architecture take."""
    folder = foreign.saved_open_clip(foreign.of_open_clip("EVA02-B-16"), "EVA02-B-16", tmp_path)
    (folder / "open_clip_config.json").unlink()
    file = (folder / "open_clip_model.safetensors").rename(folder / "epoch_30.safetensors")
    architecture("EVA02-B-16", folder, ["a", "b"], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    name = f"EVA02-B-16/{file}"
    assert clip.input_of(name) == clip.Input(foreign.SIDE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert clip.load(name)[0].family == f"{name} of open_clip"
    with pytest.raises(ValueError, match=r"this is an EVA-CLIP model.*ViT-B-16-SigLIP/FILE"):
        clip.load(file)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_architecture_or_the_tag_tells_the_activation(architecture, tmp_path, quick_gelu):
    theirs = foreign.of_open_clip("ViT-B-32")
    foreign.saved_open_clip(theirs, "ViT-B-32", tmp_path)
    file = tmp_path / "renamed.pt"
    torch.save(theirs.state_dict(), file)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="ViT-B-32/FILE for GELU, ViT-B-32-quickgelu/FILE for QuickGELU"):
        clip.load(file)
    architecture("ViT-B-32", tmp_path, config={"quick_gelu": quick_gelu})
    assert clip.load(f"ViT-B-32/{file}")[0].quick_gelu == quick_gelu
    architecture("ViT-B-32", tmp_path, ["tag"], quick_gelu=quick_gelu)  # the architecture says GELU
    model, _ = clip.load("ViT-B-32/tag")
    assert type(model) is clip.CLIP
    assert model.quick_gelu == quick_gelu
    architecture("ViT-B-32", tmp_path, ["tag"], config={"quick_gelu": True})  # as roberta-ViT-B-32, whose tag is silent
    assert clip.load("ViT-B-32/tag")[0].quick_gelu


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """The Hub has one repository, `owner/siglip`; what is asked of it is noted."""
    source, cache, asked = tmp_path / "hub", tmp_path / "cache" / "abc123", []
    foreign.saved_hugging_face(foreign.of_hugging_face("siglip"), "siglip", source)

    def copy(name):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes((source / name).read_bytes())

    def snapshot_download(repo_id, allow_patterns):
        asked.append(repo_id)
        for file in source.iterdir():
            if file.name in allow_patterns:
                copy(file.name)
        return str(cache)

    def hf_hub_download(repo_id, filename, revision):
        asked.append((filename, revision))
        copy(filename)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(hub, "list_repo_files", lambda *_, **__: [file.name for file in source.iterdir()])
    return source, cache, asked


def test_a_repository_of_the_hub(repository):
    _, cache, asked = repository
    assert clip.input_of("hf-hub:owner/siglip").side == foreign.SIDE
    assert asked == ["owner/siglip"]
    model, _ = clip.load("hf-hub:owner/siglip")
    assert asked[2:] == [("model.safetensors", "abc123")]
    assert model.family == "siglip of transformers"
    clip.load("hf-hub:owner/siglip")
    assert len([one for one in asked if isinstance(one, tuple)]) == 1, "weights are fetched once"
    assert find_backbone("hf-hub:owner/siglip").path == cache


def test_a_repository_without_its_tokenizer_or_weights(repository):
    source, cache, _ = repository
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(ValueError, match=rf"its tokenizer, {cache}, .*put the model's tokenizer files .* into {cache}"):
        clip.load("hf-hub:owner/siglip")
    (source / "model.safetensors").unlink()
    (cache / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'hf-hub:owner/siglip' is no CLIP .* none of open_clip_model\.safetensors"):
        clip.load("hf-hub:owner/siglip")
    (source / "config.json").unlink()
    (cache / "config.json").unlink()
    with pytest.raises(ValueError, match=r"is no CLIP .* none of open_clip_config\.json, config\.json"):
        clip.load("hf-hub:owner/siglip")


def answer(kind):
    response = httpx.Response(404, request=httpx.Request("GET", "https://example.org"))
    return kind(f"{kind.__name__} for url", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            lambda: answer(hub.errors.GatedRepoError),
            ValueError,
            "is gated: accept its terms .*`hf auth login`.*HF_TOKEN",
        ),
        (
            lambda: answer(hub.errors.RepositoryNotFoundError),
            ValueError,
            "no 'owner/name' that can be read; .*spelling",
        ),
        (
            lambda: hub.errors.LocalEntryNotFoundError("no network"),
            ConnectionError,
            "cannot fetch owner/name .*one folder",
        ),
        (lambda: httpx.ConnectError("no network"), ConnectionError, "cannot fetch owner/name .*one folder.*cache"),
    ],
)
def test_what_the_hub_says(monkeypatch, error, kind, text):
    def fail(*_, **__):
        raise error()

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(kind, match=text):
        clip.load("hf-hub:owner/name")
    assert clip.input_of("hf-hub:owner/name") is None


def test_names_of_the_hub_that_are_none():
    for name in ("hf-hub:name", "hf-hub:owner/name/file"):
        with pytest.raises(ValueError, match="is no name of the Hugging Face Hub, expected hf-hub:OWNER/NAME"):
            clip.load(name)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("Failed to download file (open_clip_pytorch_model.bin). Last error: 401 gated repo", ValueError, "is gated"),
        (
            "Failed to download file (open_clip_pytorch_model.bin). Last error: no network",
            ConnectionError,
            "one folder",
        ),
    ],
)
def test_weights_of_a_tag_that_cannot_be_fetched(architecture, monkeypatch, tmp_path, text, kind, said):
    architecture("EVA02-B-16", tmp_path, ["merged"])

    def fail(*_, **__):
        raise FileNotFoundError(text)

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(kind, match=rf"{said}"):
        clip.load("EVA02-B-16/merged")


@pytest.mark.parametrize("package", ["open_clip", "timm", "transformers", "huggingface_hub"])
def test_a_missing_package_is_named(monkeypatch, tmp_path, package):
    name = {
        "open_clip": "EVA02-B-16",
        "timm": "EVA02-B-16",
        "transformers": "ViT-B-16-SigLIP",
        "huggingface_hub": "hf-hub:owner/name",
    }[package]
    if package != "huggingface_hub":
        name = foreign.saved_open_clip(foreign.of_open_clip(name), name, tmp_path)

    found = importlib.import_module

    def without(module, *more):
        if module == package:
            raise ImportError(f"No module named {module!r}")
        return found(module, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    pip = {"open_clip": "open_clip_torch"}.get(package, package)
    with pytest.raises(
        ImportError, match=rf"needs the package {pip} .*pip install {pip}, or the extra align-prompt\[towers\]"
    ):
        clip.load(name)


def test_unknown_names_say_what_there_is():
    with pytest.raises(
        ValueError, match=r"'ViT-B-16-SigLIP3/webli' is neither .*do you mean ViT-B-16-SigLIP.*hf-hub:OWNER"
    ):
        clip.load("ViT-B-16-SigLIP3/webli")
    with pytest.raises(FileNotFoundError, match="neither a file"):
        clip.load("weights/missing.pt")
    from align_prompt.registries import listed

    found = listed("backbones")
    assert {"ViT-B/16", "ViT-B-16-SigLIP/webli", "EVA02-B-16/merged2b_s8b_b131k"} <= set(found)
    assert any(line.startswith("hf-hub:OWNER/NAME") for line in found)


def test_models_of_transformers_that_are_no_clip(tmp_path):
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chinese_clip"}))
    with pytest.raises(ValueError, match=r"this is a chinese_clip model .* expected clip, siglip or siglip2"):
        clip.load(tmp_path)


def test_a_tokenizer_of_another_model(tmp_path):
    theirs = foreign.of_open_clip("ViT-B-16-SigLIP")
    folder = foreign.saved_open_clip(theirs, "ViT-B-16-SigLIP", tmp_path)
    small = foreign.OPEN_CLIP["ViT-B-16-SigLIP"] | {"text_cfg": foreign.SENTENCEPIECE | {"vocab_size": 60}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": small}))
    weights = {key: value.contiguous() for key, value in theirs.state_dict().items()}
    weights["text.token_embedding.weight"] = weights["text.token_embedding.weight"][:60].clone()
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"its tokenizer gives the token \d+, but the model has a table of 60"):
        clip.load(folder)


def test_the_old_interface_and_files_of_this_project_refuse(tmp_path):
    from clip import clip as old

    folder = foreign.saved_open_clip(foreign.of_open_clip("EVA02-B-16"), "EVA02-B-16", tmp_path)
    with pytest.raises(ValueError, match=r"needs CLIP's own towers; this backbone is .* of open_clip"):
        old.load(folder)
    model, _ = clip.load(folder)
    with pytest.raises(ValueError, match="have no file format here"):
        clip.save_model(model, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="recorded of CLIP's own towers"), clip.record(model, "vision", [0]):
        pass
