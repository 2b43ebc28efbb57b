"""The program: predict, export, list."""

import csv
import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import align_prompt
from align_prompt.__main__ import main
from align_prompt.commands.predict import progress
from dassl.config import get_cfg_default
from dassl.engine.command import evaluate


@pytest.fixture
def call(capsys, monkeypatch):
    """call(arguments...): exit code, standard output and standard error."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # of a command that another test called in this process

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("way", ["files", "folder", "pattern", "standard input"])
def test_predict_finds_pictures(way, call, checkpoint, pictures, monkeypatch):
    path = checkpoint("CoOp")
    folder = str(Path(pictures[0]).parent)
    given = {"files": pictures, "folder": [folder], "pattern": [f"{folder}/*.png"], "standard input": ["-"]}[way]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(name + "\n" for name in pictures)))
    code, out, _ = call("predict", path, *given, "--top", 2, "--format", "jsonl", "--device", "cpu")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    expected = align_prompt.load(path, device="cpu").predict(pictures, top=2)
    assert [row["path"] for row in rows] == pictures
    for row, prediction in zip(rows, expected, strict=True):
        assert [best["label"] for best in row["top"]] == [label for label, _ in prediction.top]
        found, wanted = [best["probability"] for best in row["top"]], [value for _, value in prediction.top]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_predict_writes_csv_and_a_sheet_and_goes_on_after_a_bad_picture(call, checkpoint, pictures, tmp_path):
    path = checkpoint("CoOp")
    (tmp_path / "bad.png").write_text("no picture")
    mixed = [pictures[0], tmp_path / "bad.png", pictures[1], "https://example.org/a.png"]
    where = ("--output", tmp_path / "rows.csv", "--sheet", tmp_path / "sheet.png")
    code, out, err = call("predict", path, *mixed, "--top", 9, "--format", "csv", "--device", "cpu", *where)
    assert (code, out) == (1, "")
    assert "2 of 4 pictures could not be read" in err
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    more = [f"{column}_{place}" for place in (2, 3) for column in ("label", "probability")]
    assert list(rows[0]) == ["path", "label", "probability", *more, "error"]
    expected = align_prompt.load(path, device="cpu").predict([pictures[0], pictures[1]])
    assert [rows[k]["label"] for k in (0, 2)] == [row.label for row in expected]
    assert [float(rows[k]["probability"]) for k in (0, 2)] == [row.probability for row in expected]
    assert "not an image file" in rows[1]["error"]
    assert "not fetched" in rows[3]["error"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 4 * 160


def test_predict_other_classes_as_a_table(call, backbone, pictures, tmp_path):
    (tmp_path / "names.txt").write_text("dog\n\nred heart\n")
    code, out, _ = call("predict", backbone, *pictures, "--classes-file", tmp_path / "names.txt", "--device", "cpu")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert "dog" in out
    assert " %" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "BACKBONE"), "no pictures are given"),
        (("predict", "BACKBONE", "a.png"), "no classes to choose from"),
        (("predict", "no_such_run", "a.png"), "neither a file nor one of the models"),
        (("predict", "BACKBONE", "nothing/*.png"), "no file fits the pattern"),
        (("predict", "BACKBONE", "EMPTY"), "has no pictures"),
        (("predict", "BACKBONE", "a.png", "--classes", "x", "--top", "0"), "top is 0"),
        (("export", "BACKBONE", "out.docx", "--classes", "x"), "ends in .docx, expected .safetensors"),
        (("export", "BACKBONE", "out.onnx", "--classes", "x", "--backbone-inside"), "not of onnx"),
    ],
)
def test_bad_input_is_one_line(arguments, message, call, backbone, tmp_path):
    places = {"BACKBONE": backbone, "EMPTY": tmp_path}
    code, _, err = call(*(places.get(argument, argument) for argument in arguments))
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]


def test_export_by_the_ending(call, checkpoint, pictures, tmp_path):
    path = checkpoint("CoOp")
    for name, said in (("a.safetensors", "backbone named"), ("a.npz", "3 classes x 32 features"), ("hub", "README.md")):
        code, out, _ = call("export", path, tmp_path / name)
        assert code == 0
        assert said in out
    found = align_prompt.load(tmp_path / "a.safetensors", device="cpu").predict(pictures)
    assert found == align_prompt.load(path, device="cpu").predict(pictures)


def test_lists(call):
    assert "ALIGN" in call("list", "methods")[1].split()
    assert "ALIGN/emoji" in call("list", "configs")[1].split()
    assert "digits" in call("list", "datasets")[1].split()
    assert "emoji-ViT-S/8" in call("list", "backbones")[1].split()
    assert "embedded_few_shot" in call("list", "recipes")[1].split()
    assert call("list", "cheese")[0] == 2


def test_a_missing_optional_package_is_named(call, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = call("export", checkpoint("CoOp"), tmp_path / "a.onnx")
    assert code == 2
    assert "pip install onnx onnxscript onnxruntime" in err
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, _, err = call("predict", checkpoint("CoOp"), "--webcam")
    assert code == 2
    assert "pip install opencv-python-headless" in err


def test_a_frame_of_a_webcam(call, checkpoint, pictures, tmp_path, monkeypatch):
    released = []

    class VideoCapture:
        def __init__(self, number):
            self.number = number

        def read(self):
            if self.number:
                return False, None
            return True, np.asarray(Image.open(pictures[0]))[:, :, ::-1]  # opencv's order is BGR

        def release(self):
            released.append(self.number)

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=VideoCapture))
    path, sheet = checkpoint("CoOp"), tmp_path / "sheet.png"
    arguments = ("--webcam", "--format", "jsonl", "--device", "cpu", "--sheet", sheet)
    code, out, _ = call("predict", path, pictures[1], *arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["path"] for row in rows]) == (0, [pictures[1], "webcam 0"])
    expected = align_prompt.load(path, device="cpu").predict(pictures[0])[0]
    assert rows[1]["label"] == expected.label
    assert rows[1]["probability"] == pytest.approx(expected.probability, rel=1e-5)
    assert sheet.is_file()
    code, _, err = call("predict", path, "--webcam", "3")
    assert (code, released) == (2, [0, 3])
    assert "camera 3 gives no frame" in err


def test_progress_is_shown_on_a_terminal_alone(monkeypatch):
    shown = {}
    for terminal in (True, False):
        text = io.StringIO()
        text.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", text)
        assert list(progress(iter("abc"), 3)) == ["a", "b", "c"]
        shown[terminal] = text.getvalue()
    assert "picture" in shown[True]
    assert shown[False] == ""


def test_an_evaluation_of_one_class_is_refused_and_names_predict():
    trainer = SimpleNamespace(
        get_model_names=list, num_classes=1, lab2cname={0: "unknown"}, cfg=get_cfg_default(), output_dir=""
    )
    with pytest.raises(ValueError, match=r"of one class, 'unknown', .* align_prompt predict"):
        evaluate(trainer, SimpleNamespace(model_dir=None, load_epoch=None))


def test_completion_knows_commands_flags_and_names(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in (
        "predict",
        "sweep",
        "--dataset-config-file",
        "PromptSRC",
        "oxford_pets",
        "embedded_few_shot",
        "EuroSAT",
    ):
        assert word in script, word
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_completion_names_the_missing_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install shtab" in capsys.readouterr().err
