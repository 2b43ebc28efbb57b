"""Files that are whole or absent."""

import errno
import json
import multiprocessing
import os
import time

import pytest

from dassl.utils import atomic_write, read_json, write_json, write_text


def test_json_round_trip_and_form(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json({"b": [1, 2.5], "ä": "ö"}, path)
    assert read_json(path) == {"b": [1, 2.5], "ä": "ö"}
    assert path.read_text(encoding="utf-8").startswith('{\n    "b": [\n        1,\n')
    assert os.listdir(path.parent) == ["a.json"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json({"old": 1}, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"new": float("nan")}, path)

    def half(file):
        file.write(b"half")
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        atomic_write(path, half)
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_no_space_left_is_one_clear_message(tmp_path):
    path = tmp_path / "a.txt"
    write_text("old", path)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="no space left on the disk while writing") as caught:
        atomic_write(path, full)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        write_text("x", tmp_path / "file" / "a.txt")


def test_new_files_have_the_usual_rights(tmp_path):
    write_text("x", tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe\x00", b""])
def test_broken_json_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json.*not a JSON file"):
        read_json(tmp_path / "a.json")


def write_for_ever(path):
    for number in range(10**9):
        write_json([number] * 20000, path)


def test_killed_writer_never_leaves_half_a_file(tmp_path):
    path = tmp_path / "a.json"
    write_json([0] * 20000, path)
    for delay in (0.05, 0.11, 0.17, 0.23):
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,))
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
        content = json.loads(path.read_text())
        assert content == content[:1] * 20000
