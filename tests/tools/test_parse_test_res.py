"""Averages over runs, from result.json and from logs of the original family."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parse_test_res import main

LOG = """\
* accuracy: 11.0%
{signal}
Deploy the last-epoch model
=> result
* total: 1,000
* accuracy: {value}%
* error: 1.0%
* macro_f1: 50.5%
"""


def finished(folder, accuracy, protocol="p"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "result.json").write_text(json.dumps({"accuracy": accuracy, "protocol_hash": protocol, "seed": 1}))
    (folder / "DONE").touch()


def logged(folder, value, signal="Finish training"):
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(LOG.format(signal=signal, value=value))


def summary(text):
    return re.findall(r"\* \w+: [\d.]+% \+- [\d.]+%", text)


def test_mean_and_population_spread_of_results(tmp_path, capsys):
    for seed, value in enumerate([60.0, 61.0, 65.0], 1):
        finished(tmp_path / f"seed{seed}", value)
    assert main([str(tmp_path)]) == 0
    assert summary(capsys.readouterr().out) == ["* accuracy: 62.00% +- 2.16%"]  # sqrt((4 + 1 + 9) / 3)
    assert main([str(tmp_path), "--ci95"]) == 0
    assert summary(capsys.readouterr().out) == ["* accuracy: 62.00% +- 2.44%"]  # 1.96 * 2.16 / sqrt(3)


@pytest.mark.parametrize("signal", ["Finish training", "Finished training"])
def test_logs_of_the_family(tmp_path, capsys, signal):
    logged(tmp_path / "seed1", 90.1, signal)
    logged(tmp_path / "seed2", "9.21e+01", signal)
    assert main([str(tmp_path)]) == 0
    assert summary(capsys.readouterr().out) == ["* accuracy: 91.10% +- 1.00%"]
    assert main([str(tmp_path), "--keyword", "macro_f1"]) == 0
    assert summary(capsys.readouterr().out) == ["* macro_f1: 50.50% +- 0.00%"]


def test_log_of_an_evaluation_needs_its_own_signal(tmp_path, capsys):
    logged(tmp_path / "seed1", 70.0, "nothing was trained")
    assert main([str(tmp_path)]) == 1
    assert 'after "Finish training"' in capsys.readouterr().err
    assert main([str(tmp_path), "--test-log"]) == 0


def test_missing_runs_are_listed_and_change_the_exit_code(tmp_path, capsys):
    finished(tmp_path / "seed1", 60.0)
    (tmp_path / "seed2").mkdir()
    (tmp_path / "seed3").mkdir()
    (tmp_path / "seed3" / "config.yaml").touch()
    (tmp_path / "seed3" / "FAILED").write_text("no data\n")
    (tmp_path / ".hidden").mkdir()
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "(1 runs)" in shown.out
    assert "seed2: there is neither result.json nor log.txt" in shown.err
    assert "seed3: the run is failed (no data)" in shown.err
    assert "hidden" not in shown.err


@pytest.mark.parametrize("text", ["[]", "{", '{"accuracy": "high"}', '{"accuracy": NaN}', '{"accuracy": true}'])
def test_a_damaged_result_is_missing(tmp_path, capsys, text):
    finished(tmp_path / "seed1", 60.0)
    finished(tmp_path / "seed2", 60.0)
    (tmp_path / "seed2" / "result.json").write_text(text)
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "60.00% +- 0.00% (1 runs)" in shown.out
    assert "missing: " in shown.err


def test_other_protocols_are_not_averaged(tmp_path, capsys):
    finished(tmp_path / "seed1", 60.0)
    finished(tmp_path / "seed2", 62.0, protocol="q")
    assert main([str(tmp_path)]) == 2
    assert "do not share one data protocol" in capsys.readouterr().err


def test_several_experiments(tmp_path, capsys):
    for name, value in (("caltech", 90.0), ("dtd", 50.0)):
        finished(tmp_path / name / "seed1", value, protocol=name)
    assert main([str(tmp_path), "--multi-exp"]) == 0
    assert "* accuracy: 70.00% (2 experiments)" in capsys.readouterr().out


def test_folder_that_is_not_there(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="other systems have no SIGPIPE")
@pytest.mark.parametrize("program", ["parse_test_res.py", "report.py"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, program):
    finished(tmp_path / "seed1", 60.0)
    given = {
        "parse_test_res.py": [tmp_path],
        "report.py": ["embedded_precision", "--runs", tmp_path, "--format", "csv", "--output", tmp_path / "report"],
    }
    command = [sys.executable, str(Path(__file__).parents[2] / program), *map(str, given[program])]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.stderr, done.returncode) == ("", -13)
