"""The doctor on images of your own: class folders, tables and parquet files that are right, and what can be wrong."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from datasets.custom.health import examine_own
from datasets.doctor import main


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def fill(folder, counts, start=0):
    """Class folders with so many pictures each, all different."""
    for name, count in counts.items():
        for number in range(count):
            start += 1
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(start))
    return start


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "mine"
    end = fill(folder / "train", {"ant": 6, "bee": 5})
    fill(folder / "test", {"ant": 3, "bee": 2}, end)
    return folder


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def found(report, level="error"):
    return [finding for finding in report.findings if finding.level == level]


def test_class_folders_that_are_right(mine):
    before = sorted(mine.rglob("*"))
    report = examine_own(mine)
    assert report.ok
    assert (report.counts, report.classes, report.split) == ({"train": 11, "val": 0, "test": 5}, 2, "given")
    assert (report.decoded, report.compared) == (16, 16)
    assert set(report.hashes) == {"class names", "train items", "test items"}
    assert [finding.text for finding in report.findings] == ["training images per class: 5 to 6"]
    assert sorted(mine.rglob("*")) == before
    assert examine_own(mine, samples=4).decoded == 4
    assert examine_own(mine, samples=4, full=True).decoded == 16


def test_an_automatic_split_is_named_and_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fill(tmp_path / "mine", {"ant": 10, "bee": 10})
    report = examine_own(tmp_path / "mine")
    assert report.ok
    assert report.split == "automatic, seed 1, train 0.5, val 0.2"
    assert report.counts == {"train": 10, "val": 4, "test": 6}
    assert not (tmp_path / "cache").exists()


def test_damaged_empty_and_equal_images(mine):
    (mine / "train" / "ant" / "0.png").write_bytes(b"")
    (mine / "train" / "ant" / "1.png").write_bytes(picture(3)[:60])
    shutil.copy(mine / "train" / "bee" / "0.png", mine / "test" / "bee" / "9.png")
    report = examine_own(mine)
    (error,) = found(report)
    assert error.text == "2 of 17 images cannot be decoded: train/ant/0.png, train/ant/1.png"
    (warning,) = found(report, "warning")
    assert warning.text == "1 test images have the content of a training image: train/bee/0.png = test/bee/9.png"
    assert "leave them out" in warning.fix


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_tables(tmp_path, kind):
    fill(tmp_path / "mine", {"a": 6, "b": 6})
    rows = [(f"{name}/{number}.png", name, "train" if number < 4 else "test") for name in "ab" for number in range(6)]
    table = tmp_path / "mine" / f"items.{kind}"

    def write(rows):
        if kind == "csv":
            write_table(table, [("path", "label", "split"), *rows])
        else:
            table.write_text(json.dumps([dict(zip(("path", "label", "split"), row)) for row in rows]))

    write(rows)
    assert examine_own(table).counts == examine_own(table.parent).counts == {"train": 8, "val": 0, "test": 4}
    assert examine_own(table).ok
    write([*rows, ("b/77.png", "b", "train")])
    (error,) = found(examine_own(table))
    assert error.text == "1 of 13 images are missing: b/77.png"
    write([*rows, rows[0]])
    (error,) = found(examine_own(table))
    assert (error.check, "again" in error.text) == ("items", True)
    write([*rows, ("b/5.png", "c", "middle")])
    (error,) = found(examine_own(table))
    assert "'middle', expected train, val or test" in error.text
    write([row for row in rows if row[1:] != ("b", "train")])
    report = examine_own(table)
    assert [error.check for error in found(report)] == ["items"]
    assert "no training images for 1 class(es)" in found(report)[0].text
    assert report.decoded == 8  # the images are looked at all the same


def test_classes_without_test_images_and_names_that_stand_twice(mine):
    shutil.rmtree(mine / "test" / "bee")
    fill(mine / "train", {"fly": 2}, 100)
    fill(mine / "test", {"fly": 1}, 200)
    (mine / "dataset.yaml").write_text(yaml.safe_dump({"classnames": {"ant": "bug", "fly": "bug"}}))
    report = examine_own(mine)
    assert report.ok
    assert [finding.text for finding in found(report, "warning")] == [
        "1 class names stand for more than one class: 'bug'",
        "1 classes have no test image: bee",
    ]
    assert "1 classes have fewer than 4 training images: bug" in [finding.text for finding in found(report, "note")]


def test_warnings_of_the_reader_are_in_the_report_and_not_in_the_log(mine, caplog):
    shutil.rmtree(mine / "train")
    report = examine_own(mine)
    assert ["test images only" in finding.text for finding in found(report, "warning")] == [True]
    assert caplog.text == ""
    assert report.compared == 0


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()

    def write(split, images):
        labels = [number % 2 for number in range(len(images))]
        table = pyarrow.table({"image": [{"bytes": image, "path": "x.png"} for image in images], "label": labels})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")

    write("train", [picture(seed) for seed in range(8)])
    write("test", [picture(seed) for seed in range(20, 24)])
    report = examine_own(folder)
    assert report.ok
    assert (report.folder, report.counts) == (str(folder), {"train": 8, "val": 0, "test": 4})
    assert (report.decoded, report.compared) == (12, 12)
    assert not (tmp_path / "cache").exists()
    write("test", [picture(20)[:50], picture(1), picture(22), picture(23)])
    report = examine_own(folder)
    assert [error.text.split(":")[0] for error in found(report)] == ["1 of 12 images cannot be decoded"]
    assert any("1 test images have the content" in finding.text for finding in found(report, "warning"))
    assert str(tmp_path) not in str([finding for finding in report.findings if finding.check != "reader"])
    (folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    (error,) = found(examine_own(folder))
    assert "damaged or no parquet file" in error.text


def test_command_line(mine, tmp_path, capsys):
    reports = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md"), "--quiet"]
    assert main(["folder", "--root", str(mine), *reports]) == 0
    (content,) = json.loads((tmp_path / "r.json").read_text())
    assert (content["name"], content["ok"], content["counts"]["train"]) == ("folder", True, 11)
    assert "| folder | ok | 11 | 0 | 5 | 2 | given | 16 | 16 |" in (tmp_path / "r.md").read_text()
    assert "all in order" in capsys.readouterr().out
    (mine / "test" / "ant" / "0.png").write_bytes(b"none")
    assert main(["folder", "--root", str(mine), "--quiet"]) == 1
    assert "not in order: folder" in capsys.readouterr().out
    shutil.copy(mine / "train" / "bee" / "0.png", mine / "test" / "ant" / "0.png")
    assert main(["folder", "--root", str(mine), "--quiet"]) == 0
    assert main(["folder", "--root", str(mine), "--quiet", "--strict"]) == 1
    assert main(["folder", "--root", str(tmp_path / "nothing"), "--quiet"]) == 1
    assert "there is no" in capsys.readouterr().out
    assert main(["--root", str(mine)]) == 1
    assert f"python -m datasets.doctor folder --root {mine}" in capsys.readouterr().out
