"""The mirror on the Hugging Face Hub, played by a folder, before the publishers."""

import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import replace

import pytest

from datasets.prepare import command, mirror
from datasets.prepare.catalog import CATALOG
from datasets.prepare.command import Settings, main, prepare

FIRST = Settings(quiet=True, pause=0, mirror=True)
LISTS = ("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(file, {path: text}) puts an archive into the repository; hub.asked: the calls. Publishers do not answer."""
    folder, asked = tmp_path / "hub", []
    folder.mkdir()

    def add(file, content):
        with zipfile.ZipFile(folder / file, "w") as archive:
            for path, text in content.items():
                archive.writestr(path, text)
        return folder / file

    def fetched(repo_id, filename, *, revision, local_dir):
        asked.append((repo_id, filename, revision))
        if not (folder / filename).is_file():
            raise OSError(f"404: {filename}\nand more")
        local_dir.mkdir(parents=True, exist_ok=True)
        return shutil.copy(folder / filename, local_dir)

    def publisher(urls, *_, **__):
        raise ConnectionError(f"no answer of {urls[0]}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    monkeypatch.setattr(command, "fetch", publisher)
    add.asked = asked
    return add


def aircraft(top="fgvc_aircraft/"):
    return {f"{top}images/1.jpg": "picture", **{f"{top}{name}": name for name in LISTS}}


@pytest.mark.parametrize("top", ["fgvc_aircraft/", "", "some/folders/above/"])
def test_a_data_set_comes_from_the_mirror(hub, tmp_path, top):
    hub("fgvc_aircraft.zip", aircraft(top))
    steps = prepare("FGVCAircraft", tmp_path / "data", settings=FIRST)
    folder = tmp_path / "data" / "fgvc_aircraft"
    assert (folder / "images" / "1.jpg").read_text() == "picture"
    assert [(folder / name).read_text() for name in LISTS] == list(LISTS)
    assert [(step.file, step.state) for step in steps] == [
        ("fgvc_aircraft.zip", "done"), ("fgvc-aircraft-2013b.tar.gz", "there"),
    ]  # fmt: skip
    assert hub.asked == [("zhengli97/prompt_learning_dataset", "fgvc_aircraft.zip", mirror.REVISION)]
    record = json.loads((folder / ".prepare" / "record.json").read_text())
    assert record["fgvc-aircraft-2013b.tar.gz"]["from"].endswith("prompt_learning_dataset/fgvc_aircraft.zip")
    assert not (folder / ".prepare" / "mirror").exists()
    prepare("FGVCAircraft", tmp_path / "data", settings=FIRST)
    assert len(hub.asked) == 1  # all there


def test_a_split_file_that_is_not_the_published_one_is_left_to_its_publisher(hub, tmp_path, caplog):
    split = CATALOG["DescribableTextures"].split_file
    hub("dtd.zip", {"dtd/images/a/1.jpg": "x", f"dtd/{split}": json.dumps({"train": [], "val": [], "test": []})})
    steps = prepare("DescribableTextures", tmp_path, settings=FIRST)
    assert f"not from the mirror: {split} has sha256" in caplog.text
    assert not (tmp_path / "dtd" / split).exists()
    assert (tmp_path / "dtd" / "images" / "a" / "1.jpg").exists()
    assert {step.file: step.state for step in steps}[split] == "failed"


def test_without_the_mirror_the_publishers_are_asked(hub, tmp_path, caplog, monkeypatch):
    steps = prepare("FGVCAircraft", tmp_path, settings=FIRST)
    assert "does not give fgvc_aircraft.zip: 404: fgvc_aircraft.zip" in caplog.text
    assert "no answer of https://www.robots.ox.ac.uk" in steps[-1].text
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    prepare("FGVCAircraft", tmp_path, settings=FIRST)
    assert "the mirror needs huggingface_hub: pip install huggingface_hub" in caplog.text


def test_it_is_asked_only_where_it_should_be(hub, tmp_path):
    prepare("FGVCAircraft", tmp_path, settings=FIRST._replace(mirror=False))
    prepare("FGVCAircraft", tmp_path, settings=FIRST._replace(offline=tmp_path))
    assert main(["FGVCAircraft", "--root", str(tmp_path), "--no-mirror", "--quiet"]) == 1
    assert hub.asked == []


def test_other_bytes_than_known_are_refused(hub, tmp_path, monkeypatch, caplog):
    path = hub("fgvc_aircraft.zip", aircraft())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = mirror.MIRRORED["FGVCAircraft"]
    monkeypatch.setitem(mirror.MIRRORED, "FGVCAircraft", replace(archive, sha256="0" * 64))
    prepare("FGVCAircraft", tmp_path / "a", settings=FIRST)
    assert f"has sha256 {right}, expected {'0' * 64}" in caplog.text
    monkeypatch.setitem(mirror.MIRRORED, "FGVCAircraft", replace(archive, sha256=right))
    assert prepare("FGVCAircraft", tmp_path / "b", settings=FIRST)[0].state == "done"


def test_the_list_says_untested_and_the_host(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert main(["--list", "UCF101"]) == 0
    shown = capsys.readouterr().out
    assert "ucf101.zip (untested): 0.14 GB, sha256 2fe1bd40" in shown
    assert "https://mirror.example/zhengli97/prompt_learning_dataset" in shown
