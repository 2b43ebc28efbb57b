"""A run deletes and overwrites only what a run has written."""

import os
import subprocess

import pytest

from dassl.engine.run import _OWN, RunFolder


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "result.json", "metrics.jsonl"])
def test_a_folder_with_files_of_another_program_is_refused(tiny, tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=f"{name}, written by another program"):
        tiny()
    assert (folder / name).read_text() == "{}"
    assert {path.name for path in folder.iterdir()} == {name, ".lock"}


def test_a_log_of_the_shell_is_no_other_program(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("python train.py > run/log.txt\n")
    assert tiny()["mode"] == "train"
    assert (tmp_path / "run" / "log.txt").read_text().startswith("python train.py > run/log.txt\n")


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_only_temporary_files_of_dead_runs_are_removed(tiny, tmp_path):
    folder, dead = tmp_path / "run", dead_process()
    (folder / "tiny").mkdir(parents=True)
    (folder / "work").mkdir()
    own = [f".config.yaml.{dead}-0123abcd.tmp", f"tiny/.model.pth.tar-2.{dead}-0123abcd.tmp"]
    foreign = [
        ".notes.tmp",
        "work/.thesis.tmp",
        f".thesis.{dead}-0123abcd.tmp",
        f"work/.config.yaml.{dead}-0123abcd.tmp",  # of a run in a folder below, which may be at work
        f".config.yaml.{os.getppid()}-0123abcd.tmp",
    ]
    for name in (*own, *foreign):
        (folder / name).touch()
    with pytest.raises(ValueError, match="unknown key"):
        tiny("NO.SUCH", 1)
    with pytest.raises(ValueError, match="LR"):
        tiny("OPTIM.LR", -1)
    assert all((folder / name).exists() for name in (*own, *foreign))
    tiny()
    assert not any((folder / name).exists() for name in own)
    assert all((folder / name).exists() for name in foreign)


def test_every_file_that_is_renamed_into_place_is_a_run_s_own(tiny, tmp_path, monkeypatch):
    """A killed run may leave each of them under its temporary name."""
    found, replace = set(), os.replace

    def noted(source, target):
        if str(source).endswith(".tmp"):
            found.add(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    tiny("TEST.PREDICTIONS", True, "TEST.COMPUTE_CMAT", True, "TEST.FINAL_MODEL", "best_val")
    assert {"cmat.pt", "predictions.csv", "result.json", "resume.pth.tar", "model-best.pth.tar"} <= found
    assert all(name.startswith(_OWN) for name in found), found


@pytest.mark.parametrize("name", ["", " "])
def test_a_folder_needs_a_name(name):
    with pytest.raises(ValueError, match="OUTPUT_DIR is empty"):
        RunFolder(name)
