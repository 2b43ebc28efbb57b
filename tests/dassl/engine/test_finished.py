"""A run that is done is recognized without torch, and only if nothing that decides about it has changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from dassl.config.flags import build_parser
from dassl.engine import finished

ROOT = Path(__file__).parents[3]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """done(*more arguments): the answer for a folder in which the command of the fixture has finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config, code = tmp_path / "method.yaml", tmp_path / "code"
    config.write_text("OPTIM: {LR: 0.5}\n")
    code.mkdir()
    (code / "method.py").touch()
    command = ["--trainer", "CoOp", "--config-file", "method.yaml", "--output-dir", "run", "OPTIM.MAX_EPOCH", "1"]
    run = tmp_path / "run"
    run.mkdir()
    started = {"command": command, "directory": str(tmp_path), "mode": "train"}
    for name, text in (("env.json", json.dumps(started)), ("result.json", '{"accuracy": 1.0}'), ("config.yaml", "")):
        (run / name).write_text(text)
    (run / "DONE").write_text("2100-01-01T00:00:00+0000\n")

    def done(*more):
        argv = [*command, *more]
        return finished.done_already(build_parser().parse_args(argv), argv, [code])

    return done


def test_the_same_command_is_done(case):
    assert case()
    assert not case("OPTIM.LR", "0.1")


@pytest.mark.parametrize("newer", ["method.yaml", "code/method.py"])
def test_a_newer_config_or_option_is_looked_at(case, newer):
    os.utime(newer, (4.2e9, 4.2e9))
    assert not case()


@pytest.mark.parametrize("file", ["DONE", "result.json", "env.json"])
def test_a_run_that_lacks_a_file_is_not_done(case, file):
    Path("run", file).unlink()
    assert not case()


def test_other_starts_are_looked_at(case, monkeypatch):
    Path("run", "resume.pth.tar").touch()
    assert not case()
    Path("run", "resume.pth.tar").unlink()
    Path("run", "env.json").write_text(Path("run", "env.json").read_text().replace('"train"', '"eval"'))
    assert not case()


def test_a_config_that_imports_code_is_looked_at(case):
    Path("method.yaml").write_text("IMPORTS: [own.py]\n")
    assert not case()


def test_a_damaged_result_is_an_error(case):
    Path("run", "result.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        case()


@pytest.mark.slow
def test_train_says_so_without_torch(tmp_path, pictures_root):
    """A run of no epochs' worth of a method without parameters, then the same command again."""
    command = [
        "--root", pictures_root, "--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path / "run"),
        "--dataset-config-file", "digits", "--config-file", str(ROOT / "configs/trainers/ZeroshotCLIP/emoji.yaml"),
    ]  # fmt: skip
    train.main(command)
    code = "import sys, train; train.start(sys.argv[1:]); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    again = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True, env=environment
    )
    assert again.stdout.splitlines() == [f"{tmp_path / 'run'} is done already; its result is used again", "False"]
