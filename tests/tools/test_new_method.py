"""The skeleton of a method: what it refuses, and that it works as written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import new_method
from tools.new_method import ROOT, create


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a new method touches; the rest is linked."""
    root = tmp_path / "checkout"
    (root / "tests").mkdir(parents=True)
    for name in ("trainers", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    linked = ("align_prompt", "clip", "dassl", "datasets", "dense", "experiments", "recipes", "transport", "scripts")
    for name in (*linked, "train.py", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    for name in ("conftest.py", "short_options.py", "test_trainers.py"):
        shutil.copy(ROOT / "tests" / name, root / "tests" / name)
    (root / "tests" / "trainers").mkdir()
    shutil.copy(ROOT / "tests" / "trainers" / "conftest.py", root / "tests" / "trainers" / "conftest.py")
    return root


@pytest.mark.parametrize(
    ("name", "node", "err"),
    [
        ("my-method", None, "'my-method', expected a Python identifier"),
        ("2Methods", None, "'2Methods', expected a Python identifier"),
        ("", None, "'', expected a Python identifier"),
        ("Class", None, "'Class', expected a Python identifier"),
        ("Méthode", None, "expected a Python identifier"),
        ("../Evil", None, "expected a Python identifier"),
        ("CoOp", None, "a trainer CoOp already"),
        ("coop", None, "a trainer CoOp already"),
        ("Mine", "COOP", "TRAINER.COOP is the section of CoOp already"),
        ("Mine", "mine", "--node is 'mine', expected capital"),
        ("Mine", "NAME", "not NAME"),
        ("Name", None, "not NAME"),
    ],
)
def test_bad_names_are_refused(checkout, name, node, err):
    before = sorted(checkout.rglob("*"))
    with pytest.raises(ValueError, match=err):
        create(name, node, checkout)
    assert sorted(checkout.rglob("*")) == before


@pytest.mark.parametrize(
    "file", ["trainers/mine.py", "configs/trainers/Mine/emoji.yaml", "tests/trainers/test_mine.py"]
)
def test_nothing_is_overwritten(checkout, file):
    path = checkout / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = sorted(checkout.rglob("*"))
    with pytest.raises(FileExistsError, match=f"{file} exists already"):
        create("Mine", None, checkout)
    assert path.read_text() == "mine"
    assert sorted(checkout.rglob("*")) == before


def test_shared_modules_and_tests_elsewhere_are_no_names(checkout):
    for name, folder in (("Base", ""), ("Prompts", "parts/"), ("Tip_Adapter", "adapters/")):
        with pytest.raises(FileExistsError, match=f"trainers/{folder}{name.lower()}.py exists already"):
            create(name, "MINE", checkout)
    (checkout / "tests" / "clip").mkdir()
    (checkout / "tests" / "clip" / "test_mine.py").touch()
    with pytest.raises(FileExistsError, match=r"tests/clip/test_mine\.py exists already"):
        create("Mine", None, checkout)


def test_only_in_a_checkout(tmp_path):
    with pytest.raises(ValueError, match="is not a checkout"):
        create("Mine", None, tmp_path)


def test_the_command(checkout, monkeypatch, capsys):
    monkeypatch.setattr(new_method, "ROOT", checkout)
    assert new_method.main(["MyMethod", "--node", "MINE"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "written: trainers/mymethod.py",
        "written: configs/trainers/MyMethod/emoji.yaml",
        "written: tests/trainers/test_mymethod.py",
    ]
    assert new_method.main(["MyMethod"]) == 2
    assert capsys.readouterr().err.startswith("error: trainers/mymethod.py exists already")


@pytest.mark.slow
def test_the_skeleton_works_and_is_clean(checkout):
    files = [str(file) for file in create("MyMethod", "MINE", checkout)]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def call(*command):
        done = subprocess.run([sys.executable, "-m", *command], cwd=checkout, env=variables, capture_output=True)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, output
        return output

    call("ruff", "check", *files[::2])
    call("ruff", "format", "--check", *files[::2])
    report = call("pytest", "-vv", "-p", "no:cacheprovider", "tests", "-k", "MyMethod or test_mymethod")
    assert " passed" in report
    for test in (
        "test_loss_terms",
        "test_train_evaluate_and_load[MyMethod]",
        "test_every_precision_runs[bf16-MyMethod]",
    ):
        assert f"{test} PASSED" in report
    assert Path(files[1]).is_file()
