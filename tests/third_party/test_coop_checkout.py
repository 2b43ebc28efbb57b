"""Trainers in a checkout of CoOp: on the original Dassl, of which `original/` has a stand-in, they train as here."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine.random_state import unchanged_random_state
from datasets.embedded import benchmark, concept_ids, load_style
from trainers.parts.engine import original

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).with_name("original")
METHODS = ("CoOp", "MaPLe", "ALIGN")


def checkout(folder, engine, parts=("clip", "trainers", "transport")):
    """A folder with some folders of this project and an engine, as CoOp's users would make it."""
    folder.mkdir()
    for name in parts:
        (folder / name).symlink_to(ROOT / name)
    (folder / "dassl").symlink_to(engine)
    for file in HERE.glob("*.py"):
        (folder / file.name).symlink_to(file)
    return folder


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven classes of embedded pictures: three styles for training, one for the test."""
    root, ids = tmp_path_factory.mktemp("pictures"), concept_ids()
    classes = dict(sorted(benchmark()["fine"]["EmojiClocks"].items())[:7])
    items = {"train": [], "test": []}
    for style in ("openmoji", "fluent-flat", "openmoji-black", "fluent-3d"):
        concepts, pixels = load_style(style)
        rows = {concept: row for row, concept in enumerate(concepts.tolist())}
        for label, (name, codes) in enumerate(classes.items()):
            image = Image.fromarray(np.asarray(pixels[rows[ids[codes[0]]]]), "RGBA")
            white = Image.new("RGBA", image.size, "white")
            Image.alpha_composite(white, image).convert("RGB").save(root / f"{style}-{label}.png")
            items["test" if style == "fluent-3d" else "train"].append([f"{style}-{label}.png", label, name])
    (root / "items.json").write_text(json.dumps(items))
    return root


def losses_here(data, output, monkeypatch):
    """Losses that `original/losses.py` finds in this process, with this project's engine."""
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", {**DATASET_REGISTRY._obj_map})
    for name in ("pictures", "losses"):
        spec = spec_from_file_location(name, HERE / f"{name}.py")
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    with unchanged_random_state():
        return {method: module.run(str(data), str(output), method) for method in METHODS}


@pytest.mark.slow
def test_first_losses_are_those_of_this_engine(data, tmp_path, monkeypatch):
    folder, output = checkout(tmp_path / "checkout", HERE / "dassl"), tmp_path / "original"
    output.mkdir()
    done = python(folder, "-m", "losses", str(data), str(output), *METHODS)
    assert done.returncode == 0, done.stderr
    original = json.loads((output / "found.json").read_text())
    assert original["engine"] == str(folder / "dassl" / "__init__.py")
    for method, found in losses_here(data, tmp_path / "ours", monkeypatch).items():
        ours, theirs = np.array(found["losses"]), np.array(original[method]["losses"])
        assert len(ours) == len(theirs) == 21
        assert abs(ours - theirs).max() <= 1e-6
        assert abs(ours[:-7] - ours[7:]).min() > 1e-4  # it learns: another order or rate would show
        assert found["accuracy"] == original[method]["accuracy"]
        assert len(set(found["accuracy"])) == 1  # a checkpoint that was read answers as it did


@pytest.mark.slow
def test_what_was_not_copied_and_what_needs_this_engine_is_named(tmp_path):
    folder = checkout(tmp_path / "checkout", HERE / "dassl", ("clip", "trainers"))
    (folder / "try.py").write_text(
        f"""
import os, sys
for module in ("trainers.align", "trainers.coop", "trainers.adapters.tip_adapter"):
    try:
        __import__(module)
    except ImportError as err:
        print(err)
        if module == "trainers.align":
            os.symlink({str(ROOT / "transport")!r}, "transport")
            for name in [name for name in sys.modules if name.startswith("trainers")]:
                del sys.modules[name]
"""
    )
    done = python(folder, "-m", "try")
    first, second = done.stdout.splitlines()
    assert "need its folder transport/, there is none: put clip/, trainers/ and transport/" in first
    assert "the original Dassl has no build_data_loader" in second


def test_old_versions_and_foreign_folders_are_named(monkeypatch, tmp_path):
    original.check_checkout()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").write_text("raise SystemExit('was imported')")
    found = original.find_spec

    def spec(name):
        return SimpleNamespace(submodule_search_locations=[str(tmp_path / name)]) if name == "clip" else found(name)

    monkeypatch.setattr(original, "find_spec", spec)
    with pytest.raises(ImportError, match=f"need its folder clip/, found is that of {tmp_path}/clip: put"):
        original.check_checkout()
    monkeypatch.setattr(torch, "__version__", "1.8.1+cu111")
    with pytest.raises(ImportError, match=r"this is torch 1.8.1.cu111 on Python .* need torch 2.4 and Python 3.10"):
        original.check_checkout()


def test_options_are_added_and_checked(monkeypatch):
    class Method:
        @staticmethod
        def defaults():
            options = {
                "N": original.Option(4, low=1),
                "SHARE": original.Option(0.5, above=0, high=1),
                "KIND": original.Option("a", choices=("a", "b")),
                "START": original.Option(None, kind=float, above=0),
            }
            return original.method_options("METHOD", options)

    registry = type("Registry", (), {"registered_names": lambda: ["Method"], "get": lambda name: Method})
    monkeypatch.setattr(original.engine, "TRAINER_REGISTRY", registry)
    monkeypatch.setattr(original, "OPTIONS", {})
    cfg = CfgNode({"TRAINER": {"METHOD": {"N": 2}}, "DATASET": {"NAME": "Pets", "SUBSAMPLE_CLASSES": "base"}})
    Method.defaults()
    assert original.problems_of(cfg, ("TRAINER.METHOD.",)) == [
        "TRAINER.METHOD.SHARE is missing: end extend_cfg() of train.py with trainers.extend_cfg(cfg)"
    ]
    original.extend_cfg(cfg)
    assert cfg.TRAINER.METHOD == {"N": 2, "SHARE": 0.5, "KIND": "a", "START": None}
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.TRAIN.TEXT_CHUNK, cfg.TEST.VIEWS) == ("base", 0, 0)
    assert original.problems_of(cfg, ("TRAINER.METHOD.",)) == []
    cfg.TRAINER.METHOD.update(N=0, SHARE=1.5, KIND="c", START=-1.0)
    assert original.problems_of(cfg, ("TRAINER.METHOD.",)) == [
        "TRAINER.METHOD.N is 0, expected a number from 1",
        "TRAINER.METHOD.SHARE is 1.5, expected a number above 0 to 1",
        "TRAINER.METHOD.KIND is 'c', expected one of 'a', 'b'",
        "TRAINER.METHOD.START is -1.0, expected a number above 0",
    ]
