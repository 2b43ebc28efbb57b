"""The log file."""

import io
import logging
import sys

import pytest

from dassl.utils import Logger, setup_logger


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.stdout
    yield
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    root.handlers[:], level, sys.stdout = before
    root.setLevel(level)


def test_print_and_logging_reach_console_and_file(tmp_path, capsys):
    logger = setup_logger(tmp_path)
    print("epoch [1/2]")
    logging.getLogger("dassl.somewhere").info("=> result\n* accuracy: 93.3%")
    logging.getLogger("dassl.somewhere").warning("careful")
    logger.close()
    text = (tmp_path / "log.txt").read_text()
    assert text == "epoch [1/2]\n=> result\n* accuracy: 93.3%\nWARNING dassl.somewhere: careful\n"
    assert capsys.readouterr().out == text
    assert not isinstance(sys.stdout, Logger)


def test_second_run_appends_after_a_separator(tmp_path):
    for line in ("first", "second"):
        logger = setup_logger(tmp_path)
        print(line)
        logger.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    assert lines[0] == "first"
    assert lines[-1] == "second"
    assert any(line.startswith("===") and "continued" in line for line in lines[1:-1])


def test_lines_are_in_the_file_at_once(tmp_path):
    setup_logger(tmp_path / "run.log")
    print("still running")
    assert (tmp_path / "run.log").read_text() == "still running\n"


def test_set_up_twice_writes_each_line_once(tmp_path):
    setup_logger(tmp_path / "a")
    setup_logger(tmp_path / "b")
    logging.getLogger("x").info("line")
    assert (tmp_path / "b" / "log.txt").read_text() == "line\n"
    assert (tmp_path / "a" / "log.txt").read_text() == ""
    assert not isinstance(sys.stdout.console, Logger)


def test_no_output_means_console_only(capsys):
    assert setup_logger(None) is None
    logging.getLogger("x").info("line")
    assert capsys.readouterr().out == "line\n"


def test_other_processes_only_warn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dassl.utils.distributed.is_main_process", lambda: False)
    assert setup_logger(tmp_path) is None
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert capsys.readouterr().out == "WARNING x: loud\n"
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written_is_not_silent(tmp_path):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    logger = setup_logger(tmp_path)
    logger.file.close()
    logger.file = Full()
    with pytest.raises(OSError, match="No space left"):
        logging.getLogger("x").info("line")
