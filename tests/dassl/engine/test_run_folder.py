"""Use of a folder, its state, and that errors lose nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
import yaml
from tiny_runs import EPOCHS, TINY, tiny_arguments

import train
from dassl.data.datasets import DatasetBase
from dassl.engine import command as command_module
from dassl.engine.records import read_metrics
from dassl.engine.run import RunFolder, RunInUse
from dassl.engine.status import read_result, run_state
from dassl.utils import read_json
from dassl.utils.errors import error_line


def test_states(tmp_path):
    assert run_state(tmp_path / "nothing") == "new"
    (tmp_path / "log.txt").touch()
    assert run_state(tmp_path) == "new"  # a folder alone means nothing
    (tmp_path / "config.yaml").touch()
    assert run_state(tmp_path) == "incomplete"
    (tmp_path / "result.json").touch()
    assert run_state(tmp_path) == "incomplete"
    (tmp_path / "FAILED").touch()
    assert run_state(tmp_path) == "failed"
    (tmp_path / "DONE").touch()
    assert run_state(tmp_path) == "done"


def test_finished_run_leaves_its_files(tiny, tmp_path):
    result = tiny()
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("config.yaml", "env.json", "log.txt", "metrics.jsonl", "result.json", "DONE", "tensorboard", "tiny")
    }
    assert run_state(folder) == "done"
    assert json.loads((folder / "result.json").read_text()) == result
    environment = read_json(folder / "env.json")
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["mode"] == "train"
    assert environment["command"][:2] == ["--import", TINY]
    assert environment["seed"] == 1
    assert environment["cpu_count"] >= 1
    assert environment["earlier_starts"] == []
    cfg = command_module.get_cfg_default()
    command_module.add_trainer_defaults(cfg)
    cfg.merge_from_file(folder / "config.yaml")  # it is a config file
    assert cfg.OPTIM.MAX_EPOCH == EPOCHS


def test_result_has_what_tables_need(tiny, tmp_path):
    result = tiny("DATASET.NUM_SHOTS", 6)
    assert (result["method"], result["dataset"], result["shots"], result["seed"]) == ("Tiny", "TinyImages", 6, 1)
    assert (result["subsample"], result["epochs"], result["selection"]) == ("all", EPOCHS, "last")
    assert result["counts"] == {
        "classes": 3,
        "train": 18,
        "val": 6,
        "test": 12,
        "evaluated": 12,
        "correct": round(result["accuracy"] * 12 / 100),
    }
    assert sum(entry["correct"] for entry in result["per_class"].values()) == result["counts"]["correct"]
    assert result["trainable_parameters"] == 4 * 27 + 4 + 3 * 144 + 3
    for name in ("train_seconds", "eval_seconds", "elapsed_seconds", "images_per_second", "train_images_per_second"):
        assert result[name] > 0
    assert result["train_images_per_second"] == pytest.approx(18 * EPOCHS / result["train_seconds"], rel=0.02)
    assert 0 <= result["ece"] <= 100
    assert result["peak_memory_mib"]["rss"] > 50
    epochs = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "epoch"]
    assert len(epochs) == EPOCHS
    assert result["last_epoch"]["loss"] == epochs[-1]["loss"] != epochs[0]["loss"]


def test_fingerprint_tells_what_may_be_compared(tiny):
    base = tiny(output="a")
    seed = tiny(output="b", seed="2")
    assert base["fingerprint_hash"] != seed["fingerprint_hash"]
    assert base["protocol_hash"] == seed["protocol_hash"]
    assert tiny("OPTIM.LR", 0.01, output="c")["fingerprint_hash"] == base["fingerprint_hash"]
    names = tiny(output="d", dataset="TinyOthers")
    size = tiny("INPUT.TRANSFORMS", "['normalize']", output="e")
    shots = tiny("DATASET.NUM_SHOTS", 2, output="f")
    assert len({r["protocol_hash"] for r in (base, names, size, shots)}) == 4
    assert names["fingerprint"]["classnames"] != base["fingerprint"]["classnames"]
    assert base["fingerprint"]["templates"] == "a {} image"
    assert "split_origin" not in base["fingerprint"]


def test_fingerprint_says_that_a_split_is_not_the_official_one(tiny, monkeypatch):
    base = tiny(output="a")
    monkeypatch.setattr(DatasetBase, "split_origin", "self-made")
    other = tiny(output="b")
    assert other["fingerprint"]["split_origin"] == "self-made"
    assert other["protocol_hash"] != base["protocol_hash"]


def test_fingerprint_does_not_depend_on_where_the_data_is(tiny, root, tmp_path):
    first = tiny(output="a")
    root.rename(tmp_path / "moved")
    second = train.run(tiny_arguments(tmp_path / "moved", tmp_path / "b"))
    assert first["fingerprint_hash"] == second["fingerprint_hash"]


def test_finished_run_is_not_trained_again(tiny, tmp_path, caplog):
    first = tiny()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    caplog.clear()
    assert tiny() == first
    assert "done already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"} == before
    with pytest.raises(ValueError, match=r"OPTIM.LR: 0.05 -> 0.07"):
        tiny("OPTIM.LR", 0.07)


def test_evaluation_again_keeps_the_costs_of_training(tiny, tmp_path):
    first = tiny()
    again = tiny(flags=("--eval-only",))
    assert again["accuracy"] == first["accuracy"]
    assert again["train_seconds"] == first["train_seconds"]
    assert (again["mode"], again["epochs"]) == ("train", EPOCHS)
    assert again["checkpoint"].endswith(f"(epoch {EPOCHS})")
    assert tiny() == again
    assert read_json(tmp_path / "run" / "env.json")["earlier_starts"][0]["mode"] == "train"


def test_evaluation_elsewhere_says_what_it_loaded(tiny, tmp_path):
    first = tiny("TRAIN.CHECKPOINT_FREQ", 1)
    model = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    last = tiny(output="last", flags=model)
    assert (last["accuracy"], last["mode"], last["train_seconds"]) == (first["accuracy"], "eval", None)
    assert last["checkpoint"] == f"{tmp_path / 'run'} (epoch 4)"
    assert [record["epoch"] for record in read_metrics(tmp_path / "last")] == [4]
    early = tiny(output="early", flags=(*model, "--load-epoch", "1"))
    assert early["checkpoint"].endswith("(epoch 1)")
    assert early["ece"] != last["ece"]
    with pytest.raises(ValueError, match="holds an evaluation"):
        tiny(output="last")


def test_best_model_is_what_an_evaluation_loads(tiny, tmp_path):
    first = tiny("TEST.FINAL_MODEL", "best_val")
    again = tiny(output="best", flags=("--eval-only", "--model-dir", str(tmp_path / "run")))
    assert again["checkpoint"].endswith("(best on validation data)")
    assert again["ece"] == first["ece"]


def test_evaluation_without_a_model_warns(tiny, caplog):
    assert tiny(flags=("--eval-only",))["checkpoint"] is None
    assert "has not been trained" in caplog.text


def test_evaluation_does_not_end_a_training_that_is_not_done(tiny, tmp_path):
    with pytest.raises(FloatingPointError):
        tiny("TRAINER.TINY.BREAK_AT", 7)
    with pytest.raises(ValueError, match="not done"):
        tiny("TRAINER.TINY.BREAK_AT", 7, flags=("--eval-only",))
    assert run_state(tmp_path / "run") == "failed"


def test_failed_run_says_why_and_goes_on_when_it_can(tiny, tmp_path):
    with pytest.raises(FloatingPointError):
        tiny("TRAINER.TINY.BREAK_AT", 7)
    folder = tmp_path / "run"
    assert run_state(folder) == "failed"
    assert (folder / "FAILED").read_text().startswith("epoch 3, batch 2: Loss is infinite")
    assert "Traceback" in (folder / "log.txt").read_text()
    with pytest.raises(
        FloatingPointError
    ):  # the steps of the resumed run are counted on, so it fails at the same place
        tiny("TRAINER.TINY.BREAK_AT", 7)
    assert torch.load(folder / "resume.pth.tar", weights_only=True)["epoch"] == 2


def test_failure_before_anything_was_saved_may_be_corrected(tiny, tmp_path):
    with pytest.raises(ValueError, match="'fp8'"):
        tiny("TRAINER.TINY.PREC", "fp8")
    assert run_state(tmp_path / "run") == "failed"
    tiny("TRAINER.TINY.PREC", "fp32")
    assert run_state(tmp_path / "run") == "done"
    assert not (tmp_path / "run" / "FAILED").exists()


def test_build_only_trains_nothing(tiny, tmp_path):
    assert tiny(flags=("--no-train",)) == {"mode": "none"}
    assert run_state(tmp_path / "run") == "incomplete"
    assert tiny()["mode"] == "train"


def test_print_config_shows_the_whole_config_and_starts_nothing(tiny, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert tiny("OPTIM.MAX_EPOCH", 7, flags=("--print-config",)) == {"mode": "none"}
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["OPTIM"]["MAX_EPOCH"], shown["SEED"], "INPUT" in shown) == (7, 1, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_checkpoints_of_another_program_are_not_overwritten(tiny, tmp_path):
    tiny(output="theirs")
    for name in ("config.yaml", "DONE", "result.json"):
        (tmp_path / "theirs" / name).unlink()
    with pytest.raises(ValueError, match="another program"):
        tiny(output="theirs")


HOLD = """
import sys, time
from dassl.engine.records import read_metrics
from dassl.engine.run import RunFolder
with RunFolder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_folder_in_use_is_refused_at_once_and_free_after_a_kill(tiny, tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(train.__file__).parent) as holder:
        assert holder.stdout.readline() == "held\n"
        begin = time.time()
        with pytest.raises(RunInUse, match="in use by another run"):
            tiny()
        assert time.time() - begin < 5
        assert not (tmp_path / "run" / "log.txt").exists()
        holder.kill()
        holder.wait()
    assert tiny()["mode"] == "train"


def test_second_holder_in_the_same_process_is_refused(tmp_path):
    with RunFolder(tmp_path), pytest.raises(RunInUse), RunFolder(tmp_path):
        pass
    assert not filelock.FileLock(tmp_path / ".lock").is_locked


def test_output_dir_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="as OUTPUT_DIR"):
        tiny(output="file")
    with pytest.raises(OSError, match="as OUTPUT_DIR"):
        tiny(output="file/below")


@pytest.mark.parametrize("nth", [4, 18])
def test_full_disk_is_one_clear_error_and_keeps_what_was_saved(tiny, tmp_path, monkeypatch, nth):
    """No space left at the n-th file: what was saved before is whole, and the run goes on when there is space again."""
    import errno
    import os

    whole = tiny(output="whole")
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) >= 2 * nth - 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="no space left on the disk while writing"):
            tiny()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    if nth > 4:
        assert torch.load(tmp_path / "run" / "resume.pth.tar", weights_only=True)["epoch"] >= 1
    assert tiny()["ece"] == whole["ece"]


def test_read_result_says_how_far_a_run_is(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        read_result(tmp_path)


def test_error_line_is_plain_text(tmp_path):
    assert error_line(KeyError("no such key")) == "no such key"
    with pytest.raises(FileNotFoundError) as err:
        (tmp_path / "missing").read_text()
    assert error_line(err.value) == f'No such file or directory: "{tmp_path / "missing"}"'
    assert error_line(ValueError()) == "ValueError"
    assert error_line(KeyError("img")) == "KeyError: 'img'"
