"""Tables from result.json."""

import csv
import io
import json

import pytest

from experiments.reports.tables import comma_separated, load_results, markdown
from tools.quickstart import main

MARKS = {"test_split": "a", "classnames": "b", "backbone": "c"}


def finished(folder, method, accuracy, **changed):
    """A folder as a finished run leaves it."""
    result = {
        "method": method,
        "dataset": "EmojiGroups",
        "shots": 16,
        "accuracy": accuracy,
        "macro_f1": accuracy - 1.25,
        "trainable_parameters": 3072,
        "elapsed_seconds": 61.4,
        "images_per_second": None,
        "counts": {"classes": 69, "test": 1234},
        "fingerprint": {**MARKS, **changed},
    }
    path = folder / method
    path.mkdir()
    (path / "result.json").write_text(json.dumps(result))
    (path / "DONE").write_text("")
    lines = [{"kind": "epoch", "epoch": e, "loss": 3.0 / e} for e in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_markdown_shows_rounded_values_and_dashes(tmp_path):
    results = load_results([finished(tmp_path, "ZeroshotCLIP", 20.0), finished(tmp_path, "CoOp", 31.26)])
    lines = markdown(results).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "method", "accuracy", "macro-F1", "trainable parameters", "seconds", "images/s",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["CoOp", "31.3", "30.0", "3,072", "61", "-"]
    assert len({len(line) for line in lines}) == 1


def test_csv_keeps_the_unrounded_values(tmp_path):
    text = comma_separated(load_results([finished(tmp_path, "CoOp", 31.26)]))
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["accuracy"], row["images/s"]) == ("31.26", "")


@pytest.mark.parametrize("key", MARKS)
def test_runs_on_different_data_are_not_put_into_one_table(tmp_path, key):
    folders = [finished(tmp_path, "ZeroshotCLIP", 20.0), finished(tmp_path, "CoOp", 30.0, **{key: "other"})]
    with pytest.raises(ValueError, match=f"{key} differs"):
        load_results(folders)


def test_an_unfinished_run_is_named(tmp_path, capsys):
    (tmp_path / "CoOp").mkdir()
    assert main([str(tmp_path), "CoOp"]) == 2
    assert "CoOp" in capsys.readouterr().err


def test_quickstart_writes_table_and_chart(tmp_path, capsys):
    for method, accuracy in (("ZeroshotCLIP", 20.0), ("CoOp", 30.0)):
        finished(tmp_path, method, accuracy)
    assert main([str(tmp_path), "ZeroshotCLIP", "CoOp"]) == 0
    assert "| CoOp" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    assert (tmp_path / "chart.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "chart.png").stat().st_size > 5000
