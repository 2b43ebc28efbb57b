"""The table of what was measured of checkpoints."""

import json

from tools.checkpoint import main


def run(folder, **figures):
    folder.mkdir(parents=True)
    result = {"accuracy": None, **figures}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "DONE").write_text("2026-01-01T00:00:00")


def test_a_table_of_two_checkpoints(tmp_path, capsys):
    recall = {f"{way}_r{k}": 10.0 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    run(tmp_path / "a" / "zeroshot" / "x", accuracy=50.0)
    run(tmp_path / "a" / "zeroshot" / "y", accuracy=61.0)
    run(tmp_path / "a" / "retrieval" / "z", mean_recall=12.25, **recall)
    run(tmp_path / "b" / "zeroshot" / "x", accuracy=70.0)
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--markdown", str(tmp_path / "t.md")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| part | data set | figure | a | b |"
    assert "| zeroshot | x | accuracy | 50.0 | 70.0 |" in lines
    assert "| zeroshot | mean of 2 | accuracy | 55.5 | - |" in lines
    assert [line.split(" | ")[1] for line in lines[2:6]] == ["x", "y", "mean of 2", "z"]
    assert "| retrieval | z | mean recall | 12.2 | - |" in lines
    assert "| retrieval | mean of 1 | text to image R@5 | 10.0 | - |" in lines
    assert (tmp_path / "t.md").read_text().splitlines() == lines
    assert main([str(tmp_path / "c")]) == 2
    assert "no finished runs" in capsys.readouterr().err
