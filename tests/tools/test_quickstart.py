"""The summary of the quickstart: its table, its pictures, and what it refuses."""

import csv

import pytest
from PIL import Image

from experiments import expand, load_recipe
from tests.experiments.reports.invented_runs import write_run
from tools.quickstart import main


@pytest.fixture
def fill(tmp_path):
    """fill(rights): runs of the quickstart whose methods are right on so many of 40 pictures of 20 classes."""
    for i in range(40):
        Image.new("RGB", (8, 8), (6 * i, 0, 0)).save(tmp_path / f"{i}.png")

    def make(rights):
        for run in expand(load_recipe("quickstart"), output=tmp_path / "q"):
            if run.method not in rights:
                continue
            counts = {"classes": 20, "test": 40}
            write_run(run, 2.5 * (rights[run.method] + run.seed), counts=counts)
            rows = [
                (str(tmp_path / f"{i}.png"), f"c{i // 2:02}", f"c{i // 2:02}" if i < rights[run.method] else "no", 0.5)
                for i in range(40)
            ]
            with open(run.output_dir / "predictions.csv", "w", newline="") as file:
                csv.writer(file).writerows([("path", "label", "prediction", "probability"), *rows])
        return tmp_path / "q"

    return make


def test_table_pictures_and_short_names(fill, capsys):
    folder = fill({"ZeroshotCLIP": 10, "CoOp": 30})
    assert main([str(folder), "ZeroshotCLIP", "CoOp"]) == 0
    lines = (folder / "table.md").read_text().splitlines()
    first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert first == ["ZeroshotCLIP", "27.5", "-", "0", "12"]
    assert second[:2] == ["CoOp", "82.5 ± 4.0"]
    assert second[2].startswith("+50.0 (+3")
    assert second[3:] == ["2,048", "12"]
    assert [path.name for path in sorted((folder / "pictures").iterdir())] == [f"c{i:02}.png" for i in range(12)]
    with Image.open(folder / "pictures.png") as sheet:
        assert sheet.width > 6 * 160
    assert (folder / "CoOp" / "result.json").is_file()
    out = capsys.readouterr().out
    assert "20 classes, 40 test images" in out
    assert f"predict {folder}/CoOp {folder}/pictures" in out
    assert main([str(folder), "CoOp"]) == 0  # again, with one method


def test_unfinished_runs_are_named(fill, capsys):
    folder = fill({"ZeroshotCLIP": 10})
    assert main([str(folder), "ZeroshotCLIP", "CoOp"]) == 2
    assert "CoOp/emoji_quickstart/seed1: new; " in capsys.readouterr().err
