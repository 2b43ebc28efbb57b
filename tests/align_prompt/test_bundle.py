"""Bundles: the same predictions, little space, and files that are refused."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from loaded_models import NAMES
from safetensors import safe_open
from safetensors.torch import save_file

import align_prompt
import clip
from align_prompt.bundle import write_bundle
from align_prompt.export.hub import write_folder

METHODS = {
    "CoOp": (),
    "CoCoOp": (),
    "LAMM": (),
    "TipAdapter": (),
    "LinearProbe": (),
    "ALIGN": ("TRAINER.ALIGN.PROMPT_DEPTH", 2),
    "PromptSRC": ("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", [True, False])
def test_a_bundle_predicts_the_same(method, features, trained, pictures, tmp_path):
    model = trained(method, *METHODS[method])
    model.temperature = 2.5
    path = tmp_path / "out" / "one.safetensors"
    write_bundle(model, path, features=features)
    again = align_prompt.load(path, device="cpu")
    assert again.classnames == NAMES
    assert again.predict(pictures) == model.predict(pictures)
    if method in ("CoOp", "CoCoOp", "ALIGN", "PromptSRC"):
        model.classnames = again.classnames = ["dog", "cat"]
        assert again.predict(pictures) == model.predict(pictures)


def test_the_backbone_may_be_inside(trained, backbone, pictures, tmp_path, monkeypatch):
    model, path = trained("CoOp"), tmp_path / "whole.safetensors"
    write_bundle(model, path, backbone=True)
    named = tmp_path / "named.safetensors"
    write_bundle(model, named)
    assert named.stat().st_size < 20_000 < path.stat().st_size

    def no_file(*arguments, **more):
        raise FileNotFoundError("the backbone is gone")

    monkeypatch.setattr(clip, "load", no_file)
    again = align_prompt.load(path, device="cpu")
    assert again.predict(pictures) == model.predict(pictures)
    assert str(Path(backbone).parent) not in str(align_prompt.bundle.read_bundle(path).config)
    with pytest.raises(FileNotFoundError, match="is gone"):
        align_prompt.load(named)


def test_another_backbone_is_noticed(trained, backbone, tmp_path):
    path = tmp_path / "one.safetensors"
    write_bundle(trained("CoOp"), path)
    other = clip.load(backbone)[0]
    with torch.no_grad():
        other.logit_scale.add_(0.1)
    kept = Path(backbone).read_bytes()
    try:
        clip.save_model(other, backbone)
        with pytest.raises(ValueError, match="put the same weights there"):
            align_prompt.load(path)
    finally:
        Path(backbone).write_bytes(kept)


def content_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def changed(path, **changes):
    """Write the bundle again with other JSON values."""
    tensors, metadata = content_of(path)
    content = {**json.loads(metadata["content"]), **changes}
    save_file(tensors, path, {**metadata, "content": json.dumps(content)})


def test_a_later_version_is_refused(trained, tmp_path):
    path = tmp_path / "one.safetensors"
    write_bundle(trained("CoOp"), path)
    tensors, metadata = content_of(path)
    save_file(tensors, path, {**metadata, "version": "9"})
    with pytest.raises(ValueError, match=r"of version '9', and this program reads 1"):
        align_prompt.load(path)


def test_damaged_files_are_refused(trained, tmp_path):
    path = tmp_path / "one.safetensors"
    write_bundle(trained("CoOp"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"\xff\xff\xff")
    with pytest.raises(ValueError, match="the digest differs"):
        align_prompt.load(path)
    for cut in (whole[:-50], whole[:40], b""):
        path.write_bytes(cut)
        with pytest.raises(ValueError):
            align_prompt.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classnames": []}, "no class names"),
        ({"classnames": {"a": 1}}, "no class names"),
        ({"classnames": ["cat", "dog"]}, "does not fit|class"),
        ({"config": {"IMPORTS": ["evil.py"]}}, "IMPORTS, which no bundle needs"),
        ({"config": {"TRAIN.INIT_FROM": "/etc"}}, "TRAIN.INIT_FROM, which no bundle needs"),
        ({"config": {"NO.SUCH.KEY": 1}}, "unknown key"),
        ({"config": {"TRAINER.NAME": "../x"}}, "TRAINER.NAME is"),
        ({"config": 3}, "cannot be used"),
        ({"temperature": -1}, "temperature"),
        ({"epochs": {}}, "belongs to nothing"),
        ({"epochs": {"prompt_learner": "x"}}, "cannot be used"),
        ({"backbone": None}, "cannot be used"),
    ],
)
def test_hostile_bundles_are_refused(changes, message, trained, tmp_path, monkeypatch):
    path = tmp_path / "one.safetensors"
    # class-specific vectors, so that other classes do not fit
    write_bundle(trained("CoOp", "TRAINER.COOP.CSC", True), path)
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('was_run')\n")
    monkeypatch.chdir(tmp_path)
    changed(path, **changes)
    with pytest.raises(ValueError, match=message):
        align_prompt.load(path)
    assert not (tmp_path / "was_run").exists()


def test_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    for name in ("one.safetensors", "model.pth.tar-1"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError):
            align_prompt.load(tmp_path / name)
    assert not (tmp_path / "was_run").exists()


def test_a_folder_for_the_hub(trained, pictures, tmp_path):
    model = trained("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", 2)
    write_folder(model, tmp_path / "hub")
    again = align_prompt.load(tmp_path / "hub", device="cpu")
    assert again.predict(pictures) == model.predict(pictures)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["id2label"]["1"] == NAMES[1]
    cards = pytest.importorskip("huggingface_hub").ModelCard
    card = cards.load(tmp_path / "hub" / "README.md")
    assert card.data.library_name == "align_prompt"
    assert card.data.pipeline_tag == "image-classification"
