"""Files of a run that are damaged: one clear error that names the file and says what to delete."""

import json

import pytest
import torch

import train
from dassl.engine.simple import SimpleTrainer
from dassl.utils.checksums import MANIFEST


@pytest.fixture
def stopped(tiny, monkeypatch, tmp_path):
    """The folder of a run that was stopped after its second epoch."""

    def stop(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SimpleTrainer, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny()
    return tmp_path / "run"


def edit(path, **changes):
    """Change entries of a checkpoint as a program would that knows nothing of sums."""
    (path.parent / MANIFEST).unlink(missing_ok=True)
    state = torch.load(path, weights_only=True)
    torch.save({**state, **changes}, path)


DAMAGE = {
    "config.yaml": ("a: [", "{", "[1]", "x: &a [*a]"),
    "env.json": ("[1]", "{", '{"earlier_starts": 5}', "null"),
    "result.json": ("[1]", "{", "5", ""),
}


@pytest.fixture(params=[True, False], ids=["with sums", "without"])
def sums(request):
    """unnoted(folder) removes the sums, or not."""
    return lambda folder: None if request.param else (folder / MANIFEST).unlink()


@pytest.mark.parametrize("text", DAMAGE["config.yaml"])
def test_a_damaged_config_is_one_clear_error(tiny, stopped, text, sums):
    (stopped / "config.yaml").write_text(text)
    sums(stopped)
    with pytest.raises(ValueError, match=r"damaged|another config"):
        tiny()


@pytest.mark.parametrize("text", DAMAGE["env.json"])
def test_a_damaged_environment_costs_only_its_history(tiny, stopped, text, sums):
    (stopped / "env.json").write_text(text)
    sums(stopped)
    with pytest.raises(ValueError, match=r"env\.json.* (damaged|not a JSON)"):
        tiny()
    (stopped / "env.json").unlink()
    assert tiny()["mode"] == "train"
    assert json.loads((stopped / "env.json").read_text())["mode"] == "train"


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 500},
        {"epoch": 0},
        {"epoch": "2"},
        {"models": [1]},
        {"optims": None},
        {"processes": [{"random": {}, "loaders": {}}]},
        {"processes": [5]},
        {"config": 7},
        {"config": "a: ["},
        {"records": None},
        {"version": 7},
        {"best_result": "high"},
        {"extra": {}},
        {"machines": 5},
        {"machines": [5]},
        {"events": 5},
        {"events": {"a": "b"}},
        {"scheds": {"tiny": {"a": 1}}},
    ],
    ids=str,
)
def test_a_damaged_resume_state_is_one_clear_error(tiny, stopped, change):
    edit(stopped / "resume.pth.tar", **change)
    with pytest.raises(ValueError, match=r"delete (it|the folder)"):
        tiny()
    (stopped / "resume.pth.tar").unlink()
    assert tiny()["mode"] == "train"


@pytest.mark.parametrize("text", DAMAGE["result.json"])
def test_a_damaged_result_is_one_clear_error(tiny, tmp_path, text, sums):
    tiny()
    (tmp_path / "run" / "result.json").write_text(text)
    sums(tmp_path / "run")
    with pytest.raises(ValueError, match=r"result\.json"):
        tiny()


def test_train_py_shows_one_line(stopped, capsys, tmp_path):
    from tiny_runs import tiny_arguments

    edit(stopped / "resume.pth.tar", epoch=500)
    with pytest.raises(SystemExit):
        train.main(tiny_arguments(tmp_path / "images", stopped))
    assert "of epoch 500, but the run has 4" in capsys.readouterr().err.splitlines()[-1]
