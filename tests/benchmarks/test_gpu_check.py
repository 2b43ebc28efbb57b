"""The GPU check, rehearsed on the CPU."""

import argparse
import json
import multiprocessing
import sys
import time

import pytest
import torch

from benchmarks import gpu


def arguments_of(*given):
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    return parser.parse_args([*map(str, given)])


@pytest.mark.slow
def test_rehearsal(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "environment", dict)  # it asks git
    # Two of most methods' kind; then two views, a teacher, two stages, and one that adapts to test images.
    chosen = ["CoOp", "ALIGN", "CoPrompt", "PromptKD", "TwoSFS", "TDA"]
    gpu.run(arguments_of("--rehearse", "--methods", *chosen, "--output", tmp_path, "--patience", 240, "--seconds", 280))
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["method"] for row in rows] == chosen
    for row in rows:
        assert row["errors"] == {}
        assert row["logits"] == row.get("gradients", 0) == 0  # the device is the CPU itself
        assert 0 < row["bf16"] < 1
        assert min(row.get("images_s", 1), row["test_images_s"]) > 0
    assert all("gradients" in row for row in rows[:-1])
    assert rows[0]["transport"] is None
    assert 0 < rows[1]["transport"] < 1
    assert (tmp_path / "gpu.md").read_text().startswith("# Rehearsal on the CPU: nothing here was measured on a GPU")


def test_every_method_is_examined():
    assert {"ALIGN", "CoOp", "UTA", "ContrastiveCLIP", "ZeroshotCLIP", "TipAdapter"} <= set(gpu.methods())
    assert not {"UperNet", "LLaVA"} & set(gpu.methods())  # no logits of classes


def test_a_part_that_fails_does_not_stop_the_others(monkeypatch):
    def fail(self):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(gpu.Examination, "agree", fail)
    monkeypatch.setattr(gpu.Examination, "halve", lambda self: self.row.update(bf16=0.5))
    monkeypatch.setattr(gpu.Examination, "train", fail)
    row = gpu.Examination("CoOp", arguments_of("--rehearse"), "").run()
    assert row == {
        "method": "CoOp",
        "bf16": 0.5,
        "errors": {"agree": "RuntimeError: CUDA error", "train": "RuntimeError: CUDA error"},
    }


@pytest.mark.parametrize(("ending", "reason"), [("sys.exit(3)", "ended (3): gone"), ("time.sleep(60)", "ended (-9)")])
def test_a_process_that_fails_is_replaced(tmp_path, monkeypatch, ending, reason):
    """The stand-in examines methods until B, where it ends or hangs; A and C have their rows all the same."""
    worker = tmp_path / "worker"
    worker.write_text(
        f"#!{sys.executable}\nimport json, sys, time\n"
        "for name in sys.argv[sys.argv.index('--worker') + 1:]:\n"
        f"    if name == 'B':\n        print('gone', file=sys.stderr, flush=True)\n        {ending}\n"
        "    print(json.dumps({'method': name, 'errors': {}}), flush=True)\n"
    )
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    rows = []
    gpu.ask(["A", "B", "C"], arguments_of("--patience", 3), "", rows.append)
    assert [row["method"] for row in rows] == ["A", "B", "C"]
    assert [bool(row["errors"]) for row in rows] == [False, True, False]
    assert reason in rows[1]["errors"]["process"]
    page = gpu.page(rows, {"date": "2000-01-01"}, False)
    assert "| B (failed) |" in page
    assert "## Failures" in page


def test_a_kill_leaves_what_was_measured(tmp_path, monkeypatch):
    """The stand-in examines A and then hangs; the whole check is killed."""
    worker = tmp_path / "worker"
    worker.write_text(
        f"#!{sys.executable}\nimport json, time\n"
        "print(json.dumps({'method': 'A', 'images_s': 12.5, 'errors': {}}), flush=True)\ntime.sleep(5)\n"
    )
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setattr(gpu, "methods", lambda: ["A", "B"])
    monkeypatch.setattr(gpu, "environment", dict)
    arguments = arguments_of("--rehearse", "--output", tmp_path / "found")
    check = multiprocessing.get_context("fork").Process(target=gpu.run, args=(arguments,))
    check.start()
    page, data = tmp_path / "found" / "gpu.md", tmp_path / "found" / "gpu.json"
    until = time.monotonic() + 200
    while not data.exists() and time.monotonic() < until:
        time.sleep(0.05)
    check.kill()
    check.join()
    assert [row["method"] for row in json.loads(data.read_text())["rows"]] == ["A"]
    assert "| A |" in page.read_text()
    assert "12.5" in page.read_text()


def test_time_that_is_over_is_said(monkeypatch):
    rows = []
    gpu.ask(["A", "B"], arguments_of("--seconds", 0), "", rows.append)
    assert [row["errors"]["process"] for row in rows] == ["no time was left"] * 2


def test_disagreement_is_an_error(monkeypatch):
    found = iter([{"logits": torch.tensor([1.0, 100.0])}, {"logits": torch.tensor([1.0, 100.5])}])
    monkeypatch.setattr(gpu, "signals", lambda trainer, batch: next(found))
    monkeypatch.setattr(gpu.Examination, "build", lambda self, *_: argparse.Namespace(train_loader_x=[None]))
    examination = gpu.Examination("CoOp", arguments_of("--rehearse"), "")
    examination.agree()
    assert examination.row["logits"] == pytest.approx(0.005)
    assert "logits differ by 0.005" in examination.row["errors"]["logits"]
