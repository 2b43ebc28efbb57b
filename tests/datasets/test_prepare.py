"""Fetching and unpacking of data sets, from a server on this machine, with everything that can go wrong."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from filelock import FileLock
from known_trees import write_golden_tree
from loopback import serve
from PIL import Image
from scipy.io import savemat

from dassl.data.fingerprint import classnames_hash
from datasets.few_shot import read_split
from datasets.prepare import download
from datasets.prepare.catalog import CATALOG
from datasets.prepare.command import WORK, Settings, find_name, main, prepare
from datasets.prepare.convert import cifar, imagenet_train, imagenet_val
from datasets.prepare.download import fetch
from datasets.prepare.sources import DRIVE, HAND, SOURCES, Source, checksums
from datasets.prepare.unpack import entries, safe_path, unpack
from datasets.standard import make_split, picks_hash

DATA = bytes(range(256)) * 40
QUICK = Settings(quiet=True, pause=0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_fetch_drive", lambda *_: False)
    monkeypatch.setattr(download, "DRIVE_URL", "http://127.0.0.1:9/{}")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _no_mirror)


def _no_mirror(repo_id, filename, **_):
    raise OSError("no route to the Hub")


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_golden_tree(tmp_path_factory.mktemp("tree"))


def zipped(files, links=()):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return memory.getvalue()


def tarred(files, others=(), mode="w:gz"):
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind, target in others:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return memory.getvalue()


def tree_files(folder, prefix=""):
    return {
        prefix + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and WORK not in path.parts
    }


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def accept(_):
    pass


# Downloads


def test_goes_on_after_interruptions(server, tmp_path):
    server.files["/a"], server.breaks = DATA, 2
    assert fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, pause=0) == f"{server.home}/a"
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.requests == [("/a", None), ("/a", "bytes=1000-"), ("/a", "bytes=2000-")]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_later_call_goes_on(server, tmp_path):
    server.files["/a"], server.breaks = DATA, 1
    with pytest.raises(ConnectionError, match="ended after 1000 of 10240 bytes"):
        fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, attempts=1)
    assert not (tmp_path / "a").exists()
    fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.requests[-1] == ("/a", "bytes=1000-")


def test_a_file_that_changed_on_the_server_is_never_mixed(server, tmp_path):
    server.files["/a"], server.breaks = DATA, 1
    with pytest.raises(ConnectionError):
        fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, attempts=1)
    server.files["/a"] = DATA[::-1]
    fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True)
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


def test_starts_over_where_the_server_knows_no_ranges(server, tmp_path):
    server.files["/a"], server.breaks, server.ranges = DATA, 1, False
    fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, pause=0)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_part_that_is_too_long_is_started_over(server, tmp_path):
    server.files["/a"], server.breaks, server.stop_after = DATA + b"more", 1, len(DATA) + 2
    with pytest.raises(ConnectionError):
        fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, attempts=1)
    for tag in tmp_path.glob("*.tag"):
        tag.unlink()
    server.files["/a"] = DATA
    fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, pause=0)
    assert (tmp_path / "a").read_bytes() == DATA


def test_mirrors_are_tried_in_order(server, tmp_path):
    server.files |= {"/wrong": DATA[::-1], "/page": b"<html>quota</html>", "/right": DATA, "/never": DATA}

    def verify(path):
        if path.read_bytes() != DATA:
            raise ValueError("other content")

    names = ["gone", "page", "wrong", "right", "never"]
    found = fetch([f"{server.home}/{name}" for name in names], tmp_path / "a", verify, quiet=True, pause=0)
    assert found == f"{server.home}/right"
    assert [path for path, _ in server.requests] == ["/gone", "/page", "/wrong", "/right"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ConnectionError, match=r"(?s)gone: .*404.*page: .*web page instead.*wrong: other content"):
        fetch([f"{server.home}/{name}" for name in names[:3]], tmp_path / "b", verify, quiet=True, pause=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ConnectionError, match="has 10240 bytes, expected 5"):
        fetch([f"{server.home}/right"], tmp_path / "b", accept, size=5, quiet=True, pause=0)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.files["/a"], server.busy = DATA, ["/a"]
    fetch([f"{server.home}/a"], tmp_path / "a", accept, quiet=True, pause=0)
    assert len(server.requests) == 2


def test_google_drive_is_asked_through_gdown_and_then_directly(server, tmp_path, monkeypatch):
    import gdown

    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    asked = []

    def refused(**options):
        asked.append(options["id"])
        raise gdown.exceptions.FileURLRetrievalError("too many users")

    monkeypatch.setattr(gdown, "download", refused)
    monkeypatch.setattr(download, "DRIVE_URL", server.home + "/{}")
    server.files["/some-id"] = DATA
    fetch([DRIVE + "some-id"], tmp_path / "a", accept, quiet=True)
    assert (asked, (tmp_path / "a").read_bytes()) == (["some-id"], DATA)

    def given(id, output, **_):
        with open(output, "wb") as file:
            file.write(b"by gdown")
        return output

    monkeypatch.setattr(gdown, "download", given)
    fetch([DRIVE + "some-id"], tmp_path / "b", accept, quiet=True)
    assert (tmp_path / "b").read_bytes() == b"by gdown"


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert checksums(tmp_path / "a", ("md5", "sha256", "git")) == {
        "md5": "b1946ac92492d2347c6235b4d2611184",
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "git": "ce013625030ba8dba906f756967f9e9ca394464a",
    }


# Archives

BAD_TARS = {
    "absolute": tarred({"a/1": b"x", "/etc/evil": b"x"}),
    "dots": tarred({"a/1": b"x", "a/../../evil": b"x"}),
    "backslashes": tarred({"a/1": b"x", "a\\..\\..\\evil": b"x"}),
    "drive letter": tarred({"a/1": b"x", "C:/evil": b"x"}),
    "symbolic link": tarred({"a/1": b"x"}, [("a/link", tarfile.SYMTYPE, "../../evil")]),
    "absolute symbolic link": tarred({"a/1": b"x"}, [("a/link", tarfile.SYMTYPE, "/etc/passwd")]),
    "hard link": tarred({"a/1": b"x"}, [("a/link", tarfile.LNKTYPE, "../evil")]),
    "link to a folder": tarred({"a/1": b"x"}, [("b", tarfile.SYMTYPE, "a")]),
    "link to nothing": tarred({"a/1": b"x"}, [("a/link", tarfile.SYMTYPE, "2")]),
    "device": tarred({"a/1": b"x"}, [("a/device", tarfile.CHRTYPE, "")]),
    "pipe": tarred({"a/1": b"x"}, [("a/pipe", tarfile.FIFOTYPE, "")]),
}
BAD_ZIPS = {
    "zip dots": zipped({"a/1": b"x", "../evil": b"x"}),
    "zip absolute": zipped({"a/1": b"x", "/evil": b"x"}),
    "zip link": zipped({"a/1": b"x"}, [("a/link", "../../evil")]),
    "zip absolute link": zipped({"a/1": b"x"}, [("a/link", "/etc/passwd")]),
}


@pytest.mark.parametrize("kind", [*BAD_TARS, *BAD_ZIPS])
def test_dangerous_archives_are_refused_before_anything_is_written(tmp_path, kind):
    archive, new = tmp_path / "in" / "x.archive", tmp_path / "in" / "new"
    new.mkdir(parents=True)
    archive.write_bytes((BAD_TARS | BAD_ZIPS)[kind])
    with pytest.raises(ValueError, match=r"x\.archive is refused: (member|link) .*(outside|device|points to no file)"):
        unpack(archive, {"a": "a"}, new, quiet=True)
    assert list(new.iterdir()) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "new", "x.archive"]


def test_paths_that_only_look_dangerous(tmp_path):
    assert safe_path("./a//b/./c..d/...e") == "a/b/c..d/...e"
    for name in ("..", "a/..", "/a", "\\a", "c:x", "a\0b"):
        with pytest.raises(ValueError, match="outside the folder"):
            safe_path(name)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_links_inside_become_copies(tmp_path, mode):
    links = [("top/a/hard", tarfile.LNKTYPE, "top/a/1"), ("top/a/soft", tarfile.SYMTYPE, "../a/hard")]
    (tmp_path / "x").write_bytes(tarred({"top/a/1": b"one", "top/b/2": b"two"}, links, mode))
    unpack(tmp_path / "x", {"a": "images", "b/2": "two"}, tmp_path, quiet=True)
    assert tree_files(tmp_path / "images") == {"1": b"one", "hard": b"one", "soft": b"one"}
    assert (tmp_path / "two").read_bytes() == b"two"
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_links_in_zip_become_copies(tmp_path):
    (tmp_path / "x").write_bytes(zipped({"a/1": b"one"}, [("a/2", "1")]))
    unpack(tmp_path / "x", {"a": "a"}, tmp_path, quiet=True)
    assert tree_files(tmp_path / "a") == {"1": b"one", "2": b"one"}


def test_a_link_to_what_is_not_wanted_and_a_ring_of_links(tmp_path):
    (tmp_path / "x").write_bytes(tarred({"b/1": b"x"}, [("a/link", tarfile.SYMTYPE, "../b/1")]))
    with pytest.raises(ValueError, match="which is not unpacked"):
        unpack(tmp_path / "x", {"a": "a"}, tmp_path, quiet=True)
    ring = [("a/1", tarfile.SYMTYPE, "2"), ("a/2", tarfile.SYMTYPE, "1")]
    (tmp_path / "x").write_bytes(tarred({"a/0": b"x"}, ring))
    with pytest.raises(ValueError, match="which is not unpacked"):
        unpack(tmp_path / "x", {"a": "a"}, tmp_path, quiet=True)


def test_damaged_archives_are_one_clear_error(tmp_path):
    (tmp_path / "new").mkdir()
    noise = np.random.default_rng(0).bytes(20_000)
    good = {"tar": tarred({"a/1": noise}, mode="w"), "zip": zipped({"a/1": noise})}
    good |= {kind: tarred({"a/1": noise}, mode=f"w:{kind}") for kind in ("gz", "bz2", "xz")}
    for kind, content in good.items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 255
        for damaged in (content[: len(content) // 2], b"", b"no archive", bytes(flipped)):
            if kind == "tar" and damaged == flipped:
                continue  # a plain tar has no checksum of its content
            (tmp_path / f"x.{kind}").write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"x\.{kind} is damaged"):
                unpack(tmp_path / f"x.{kind}", {"a": "a"}, tmp_path / "new", quiet=True)


def test_wanted_paths_that_are_not_there_or_twice(tmp_path):
    (tmp_path / "x").write_bytes(tarred({"p/a/1": b"x", "q/a/1": b"y"}))
    with pytest.raises(ValueError, match="'a' more than once: p/a, q/a"):
        unpack(tmp_path / "x", {"a": "a"}, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="has no 'images'; it has p, q"):
        unpack(tmp_path / "x", {"images": "a"}, tmp_path, quiet=True)
    unpack(tmp_path / "x", {"q/a": "a"}, tmp_path, quiet=True)
    assert tree_files(tmp_path / "a") == {"1": b"y"}


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    (tmp_path / "x").write_bytes(tarred({"a/inner.zip": zipped({"1": b"x"})}, mode="w"))
    assert [entry.path for entry in entries(tmp_path / "x")] == ["a/inner.zip"]


def test_a_full_disk_is_said_before(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(tarred({"a/1": b"x" * 1000}))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 999}))
    with pytest.raises(OSError, match=r"x needs 0\.0 GB, but only"):
        unpack(tmp_path / "x", {"a": "a"}, tmp_path, quiet=True)
    assert not (tmp_path / "a").exists()


# A whole data set in miniature


@pytest.fixture
def eurosat(tree, server, tmp_path, monkeypatch):
    """EuroSAT of three classes on the server; returns the data root and the split file's content."""
    info = CATALOG["EuroSAT"]
    images = tree_files(tree / "eurosat" / "2750", "EuroSAT/2750/")
    away = tmp_path / "away"
    for name, content in images.items():
        write_image_bytes(away / "eurosat" / name.removeprefix("EuroSAT/"), content)
    split = make_split("EuroSAT", away)
    content = split.read_bytes()
    train, val, _ = read_split(split, away / "eurosat" / "2750")
    names = dict(sorted((item.label, item.classname) for item in train))
    mini = replace(
        info,
        classes=3,
        train=15,
        val=6,
        test=9,
        names_sha256=classnames_hash(list(names.values())),
        picks_sha256=picks_hash(train, val, str(away / "eurosat" / "2750")),
    )
    archive = zipped({**images, "__MACOSX/._x": b"", "readme.txt": b"hello"})
    server.files |= {"/EuroSAT.zip": archive, "/split.json": content}
    monkeypatch.setitem(CATALOG, "EuroSAT", mini)
    sources = (
        Source(info.split_file, (f"{server.home}/split.json",), checks={"sha256": sha256(content)}, role="names"),
        Source(
            "EuroSAT.zip",
            (f"{server.home}/old/EuroSAT.zip", f"{server.home}/EuroSAT.zip"),
            len(archive),
            {"md5": hashlib.md5(archive).hexdigest(), "sha256": sha256(archive)},
            {"2750": "2750"},
        ),
    )
    monkeypatch.setitem(SOURCES, "EuroSAT", sources)
    return tmp_path / "data"


def write_image_bytes(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def states(steps):
    return [step.state for step in steps]


def test_full_run_then_nothing_to_do(eurosat, server, tree, capsys):
    server.breaks = 1
    server.stop_after = 300
    assert main(["eurosat", "--root", str(eurosat), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("checksum is right") == 2
    assert f"python -m datasets.doctor EuroSAT --root {eurosat}" in shown
    folder = eurosat / "eurosat"
    assert tree_files(folder / "2750") == tree_files(tree / "eurosat" / "2750")
    assert sorted(path.name for path in folder.iterdir()) == [".prepare", "2750", "split_zhou_EuroSAT.json"]
    record = json.loads((folder / WORK / "record.json").read_text())
    assert record["EuroSAT.zip"]["from"] == f"{server.home}/EuroSAT.zip"
    assert record["EuroSAT.zip"]["sha256"] == sha256(server.files["/EuroSAT.zip"])
    assert sorted(path.name for path in (folder / WORK).iterdir() if path.name != "lock") == ["record.json"]
    # a second run asks nothing and writes nothing
    before, asked = {path: path.stat().st_mtime_ns for path in eurosat.rglob("*")}, len(server.requests)
    assert main(["EuroSAT", "--root", str(eurosat), "--quiet"]) == 0
    assert "it is the published one" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in eurosat.rglob("*")} == before
    assert len(server.requests) == asked


def test_only_what_is_missing_is_fetched(eurosat, server):
    prepare("EuroSAT", eurosat, settings=QUICK)
    (eurosat / "eurosat" / "split_zhou_EuroSAT.json").unlink()
    server.requests.clear()
    assert states(prepare("EuroSAT", eurosat, settings=QUICK)) == ["done", "there"]
    assert server.requests == [("/split.json", None)]


def test_wrong_content_is_not_put_in_place(eurosat, server):
    server.files["/EuroSAT.zip"] = server.files["/EuroSAT.zip"][:-1] + b"x"
    steps = prepare("EuroSAT", eurosat, settings=QUICK)
    assert states(steps) == ["done", "failed"]
    assert "has md5" in steps[1].text
    assert "expected" in steps[1].text
    assert "--offline DIR" in steps[1].text
    assert not (eurosat / "eurosat" / "2750").exists()
    assert not list((eurosat / "eurosat" / WORK).glob("*.zip*"))


def test_truncated_file_of_known_size(eurosat, server):
    whole = server.files["/EuroSAT.zip"]
    server.files["/EuroSAT.zip"] = whole[:-100]
    steps = prepare("EuroSAT", eurosat, settings=QUICK)
    assert f"has {len(whole) - 100} bytes, expected {len(whole)}" in steps[1].text
    assert not (eurosat / "eurosat" / "2750").exists()


def test_a_failed_unpack_leaves_nothing_that_looks_done(eurosat, server, monkeypatch):
    source = SOURCES["EuroSAT"][1]
    content = bytearray(server.files["/EuroSAT.zip"])
    content[len(content) // 2] ^= 255
    server.files["/EuroSAT.zip"] = bytes(content)
    monkeypatch.setitem(SOURCES, "EuroSAT", (replace(source, checks={}),))
    steps = prepare("EuroSAT", eurosat, settings=QUICK)
    assert "damaged" in steps[0].text
    # nothing is left of it: without a checksum it may have been the download
    assert list((eurosat / "eurosat").iterdir()) == []


def test_a_killed_unpack_is_cleared_away(eurosat, monkeypatch):
    left = eurosat / "eurosat" / WORK / "unpack-1" / "2750" / "River"
    left.mkdir(parents=True)
    assert states(prepare("EuroSAT", eurosat, settings=QUICK)) == ["done", "done"]
    assert not left.exists()


def test_a_dangerous_archive_of_a_source(eurosat, server, monkeypatch):
    server.files["/EuroSAT.zip"] = zipped({"2750/River/1.jpg": b"x", "../../evil": b"x"})
    monkeypatch.setitem(SOURCES, "EuroSAT", (replace(SOURCES["EuroSAT"][1], checks={}, size=None),))
    (step,) = prepare("EuroSAT", eurosat, settings=QUICK)
    assert "outside the folder" in step.text
    assert not list(eurosat.parent.rglob("evil"))
    assert not (eurosat / "eurosat" / "2750").exists()


def test_without_a_checksum_it_is_said_and_recorded(eurosat, server, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "EuroSAT", tuple(replace(source, checks={}) for source in SOURCES["EuroSAT"]))
    assert main(["EuroSAT", "--root", str(eurosat), "--quiet", "--keep"]) == 0
    digest = sha256(server.files["/EuroSAT.zip"])
    assert f"no checksum known; sha256 {digest}" in capsys.readouterr().out
    record = json.loads((eurosat / "eurosat" / WORK / "record.json").read_text())
    assert (record["EuroSAT.zip"]["sha256"], record["EuroSAT.zip"]["check"][:17]) == (digest, "no checksum known")
    assert (eurosat / "eurosat" / WORK / "EuroSAT.zip").is_file()


def test_a_split_file_in_another_form_is_taken_and_another_split_is_not(eurosat, server):
    content = json.loads(server.files["/split.json"])
    server.files["/split.json"] = json.dumps(content).encode()
    steps = prepare("EuroSAT", eurosat, settings=QUICK)
    assert "not the known bytes, but counts, class names and few-shot picks are the published ones" in steps[0].text
    split = eurosat / "eurosat" / "split_zhou_EuroSAT.json"
    assert "not the known bytes" in prepare("EuroSAT", eurosat, settings=QUICK)[0].text
    content["train"].reverse()
    split.write_text(json.dumps(content))
    steps = prepare("EuroSAT", eurosat, settings=QUICK)
    assert states(steps) == ["there", "there"]
    assert "BUT: split_zhou_EuroSAT.json has sha256" in steps[0].text
    assert json.loads(split.read_text()) == content  # a file of the user is never replaced
    split.unlink()
    server.files["/split.json"] = json.dumps(content).encode()
    assert states(prepare("EuroSAT", eurosat, settings=QUICK)) == ["failed", "there"]
    assert not split.exists()


def test_offline(eurosat, server, tmp_path, capsys):
    away = tmp_path / "fetched"
    away.mkdir()
    command = ["EuroSAT", "--root", str(eurosat), "--quiet", "--offline", str(away)]
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "has no EuroSAT.zip" in shown
    assert f"get it from {server.home}/old/EuroSAT.zip or {server.home}/EuroSAT.zip" in shown
    write_image_bytes(away / "EuroSAT.zip", server.files["/EuroSAT.zip"])
    write_image_bytes(away / "eurosat" / "split_zhou_EuroSAT.json", b"{}")
    assert main(command) == 1
    assert "has sha256" in capsys.readouterr().out
    (away / "eurosat" / "split_zhou_EuroSAT.json").write_bytes(server.files["/split.json"])
    assert main(command) == 0
    assert server.requests == []
    assert sorted(path.name for path in away.rglob("*.*")) == ["EuroSAT.zip", "split_zhou_EuroSAT.json"]
    assert main(["EuroSAT", "--root", str(eurosat)]) == 0
    with pytest.raises(SystemExit):
        main(["EuroSAT", "--root", str(eurosat), "--offline", str(away / "none")])


def test_make_split_on_request_only(eurosat, server):
    server.files.pop("/split.json")
    assert states(prepare("EuroSAT", eurosat, settings=QUICK)) == ["failed", "done"]
    folder = eurosat / "eurosat"
    assert not list(folder.glob("split*"))
    steps = prepare("EuroSAT", eurosat, True, QUICK)
    assert [(step.file, step.state) for step in steps] == [
        ("EuroSAT.zip", "there"),
        ("split_made_EuroSAT.json", "done"),
    ]
    assert "NOT the published split" in steps[1].text
    assert [path.name for path in folder.glob("split*")] == ["split_made_EuroSAT.json"]
    (folder / "split_zhou_EuroSAT.json").write_text("{}")
    with pytest.raises(ValueError, match=r"published split file .* is there"):
        prepare("EuroSAT", eurosat, True, QUICK)
    with pytest.raises(ValueError, match="comes with its own lists"):
        prepare("FGVCAircraft", eurosat, True, QUICK)


def test_a_split_is_not_made_without_its_annotations(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "OxfordPets", tuple(replace(s, urls=()) for s in SOURCES["OxfordPets"]))
    steps = prepare("OxfordPets", tmp_path, True, QUICK)
    assert [step.file for step in steps] == ["images.tar.gz", "annotations.tar.gz", "split_made_OxfordPets.json"]
    assert "not made, because images.tar.gz, annotations.tar.gz is missing" in steps[2].text
    assert not (tmp_path / "oxford_pets" / WORK / "record.json").exists()


def test_a_read_only_folder_that_is_whole_needs_no_writing(eurosat, tree, tmp_path, server):
    prepare("EuroSAT", eurosat, settings=QUICK)
    (eurosat / "eurosat" / WORK / "record.json").unlink()
    (eurosat / "eurosat" / WORK / "lock").unlink(missing_ok=True)
    (eurosat / "eurosat" / WORK).rmdir()
    os.chmod(eurosat / "eurosat", 0o555)
    try:
        assert states(prepare("EuroSAT", eurosat, settings=QUICK)) == ["there", "there"]
        assert not (eurosat / "eurosat" / WORK).exists()
    finally:
        os.chmod(eurosat / "eurosat", 0o755)


def test_one_process_at_a_time(eurosat):
    (eurosat / "eurosat" / WORK).mkdir(parents=True)
    with FileLock(eurosat / "eurosat" / WORK / "lock"), pytest.raises(OSError, match="another process is preparing"):
        prepare("EuroSAT", eurosat, settings=QUICK)
    assert (eurosat / "eurosat" / WORK).is_dir()


def test_class_names_are_copied_from_a_neighbour(tmp_path, monkeypatch):
    names = b"n01440764 tench\n"
    source = replace(SOURCES["ImageNetA"][0], checks={"sha256": sha256(names)})
    assert source.beside[0] == "imagenet/classnames.txt"
    monkeypatch.setitem(SOURCES, "ImageNetA", (source,))
    write_image_bytes(tmp_path / "imagenet" / "classnames.txt", b"another list")
    write_image_bytes(tmp_path / "imagenet-sketch" / "classnames.txt", names)
    (step,) = prepare("ImageNetA", tmp_path, settings=QUICK)
    assert step.text == "from imagenet-sketch/classnames.txt; checksum is right"
    assert (tmp_path / "imagenet-adversarial" / "classnames.txt").read_bytes() == names


def test_an_archive_in_an_archive(tmp_path, monkeypatch, server):
    inner = tarred({"101_ObjectCategories/Faces/1.jpg": b"x"})
    server.files["/c.zip"] = zipped({"caltech-101/101_ObjectCategories.tar.gz": inner, "caltech-101/show.m": b""})
    source = replace(SOURCES["Caltech101"][1], urls=(f"{server.home}/c.zip",), checks={}, size=None)
    monkeypatch.setitem(SOURCES, "Caltech101", (source,))
    assert states(prepare("Caltech101", tmp_path, settings=QUICK)) == ["done"]
    folder = tmp_path / "caltech-101"
    assert tree_files(folder) == {"101_ObjectCategories/Faces/1.jpg": b"x"}


def test_several_targets_are_completed(tmp_path, monkeypatch, server):
    parts = {path: b"x" for path in SOURCES["FGVCAircraft"][0].take if path.endswith(".txt")}
    server.files["/f"] = tarred(
        {**parts, "fgvc-aircraft-2013b/data/images/1.jpg": b"x", "fgvc-aircraft-2013b/e.m": b""}
    )
    monkeypatch.setitem(SOURCES, "FGVCAircraft", (replace(SOURCES["FGVCAircraft"][0], urls=(f"{server.home}/f",)),))
    folder = tmp_path / "fgvc_aircraft"
    write_image_bytes(folder / "variants.txt", b"of the user")
    (folder / "images").mkdir()
    assert states(prepare("FGVCAircraft", tmp_path, settings=QUICK)) == ["done"]
    found = tree_files(folder)
    assert found.pop("variants.txt") == b"of the user"
    assert sorted(found) == ["images/1.jpg", *(f"images_variant_{part}.txt" for part in ("test", "train", "val"))]


# Archives that are not folders of images


@pytest.mark.parametrize("labels", [1, 2])
def test_cifar(tmp_path, labels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    def records(numbers):
        heads = [bytes([number % 3] if labels == 1 else [9, number % 3]) for number in numbers]
        return b"".join(head + pixels[n].transpose(2, 0, 1).tobytes() for head, n in zip(heads, numbers))

    if labels == 1:
        files = {f"cifar-10-batches-bin/data_batch_{number}.bin": records([number - 1]) for number in range(1, 6)}
        files |= {
            "cifar-10-batches-bin/test_batch.bin": records([5]),
            "cifar-10-batches-bin/batches.meta.txt": b"a\nb\nc\n\n",
        }
    else:
        files = {"cifar-100-binary/train.bin": records(range(5)), "cifar-100-binary/test.bin": records([5])}
        files["cifar-100-binary/fine_label_names.txt"] = b"a\nb\nc\n"
    archive = tmp_path / "cifar.tar.gz"
    archive.write_bytes(tarred(files))
    new = tmp_path / "new"
    new.mkdir()
    cifar(archive, new, tmp_path, quiet=True)
    found = sorted(path.relative_to(new).as_posix() for path in new.rglob("*.*"))
    train = ["train/a/00000.png", "train/a/00003.png", "train/b/00001.png", "train/b/00004.png", "train/c/00002.png"]
    assert found == [f"images/{path}" for path in ["test/c/00000.png", *train]]
    assert np.array_equal(np.asarray(Image.open(new / "images/train/b/00004.png")), pixels[4])
    (name,) = (name for name in files if "test" in name)
    archive.write_bytes(tarred({**files, name: files[name][:-1]}))
    with pytest.raises(ValueError, match="no whole number of images"):
        cifar(archive, new, tmp_path, quiet=True)
    archive.write_bytes(tarred({"x": b""}))
    with pytest.raises(ValueError, match="not a binary version of CIFAR"):
        cifar(archive, new, tmp_path, quiet=True)


def devkit():
    rows = np.empty((4, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    for index, (number, wnid) in enumerate([(1, "n02"), (2, "n01"), (3, "n03"), (1001, "n99")]):
        rows[index, 0] = (np.array([[number]]), np.array([wnid]))
    memory = io.BytesIO()
    savemat(memory, {"synsets": rows})
    top = "ILSVRC2012_devkit_t12/data/"
    return {f"{top}meta.mat": memory.getvalue(), f"{top}ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n3\n"}


def test_imagenet_by_hand(tmp_path, monkeypatch):
    away = tmp_path / "away"
    classes = {
        f"n0{c}.tar": tarred({f"n0{c}_{i}.JPEG": b"%d%d" % (c, i) for i in range(2)}, mode="w") for c in (1, 2, 3)
    }
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": b"val%d" % number for number in (3, 1, 4, 2)}
    write_image_bytes(away / "ILSVRC2012_img_train.tar", tarred(classes, mode="w"))
    write_image_bytes(away / "ILSVRC2012_img_val.tar", tarred(val, mode="w"))
    sources = tuple(replace(source, checks={}, size=None) for source in SOURCES["ImageNet"][1:])
    monkeypatch.setitem(SOURCES, "ImageNet", sources)
    settings = Settings(away, quiet=True)
    steps = prepare("ImageNet", tmp_path, settings=settings)
    assert states(steps) == ["done", "failed", "failed"]
    assert "ILSVRC2012_devkit_t12.tar.gz is needed as well" in steps[2].text
    write_image_bytes(away / "ILSVRC2012_devkit_t12.tar.gz", tarred(devkit()))
    assert states(prepare("ImageNet", tmp_path, settings=settings)) == ["there", "done", "done"]
    images = tree_files(tmp_path / "imagenet" / "images")
    assert {key: value for key, value in images.items() if key.startswith("val")} == {
        "val/n01/ILSVRC2012_val_00000001.JPEG": b"val1",
        "val/n02/ILSVRC2012_val_00000002.JPEG": b"val2",
        "val/n01/ILSVRC2012_val_00000003.JPEG": b"val3",
        "val/n03/ILSVRC2012_val_00000004.JPEG": b"val4",
    }
    assert images["train/n02/n02_1.JPEG"] == b"21"
    assert len(images) == 10
    # unpacked images are enough: nothing asks for the devkit
    for path in (tmp_path / "imagenet" / "ILSVRC2012_devkit_t12" / "data").iterdir():
        path.unlink()
    assert states(prepare("ImageNet", tmp_path, settings=QUICK)) == ["there", "there", "there"]


def test_imagenet_archives_that_do_not_fit(tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    archive = tmp_path / "x.tar"
    archive.write_bytes(tarred({"n01/1.JPEG": b"x"}, mode="w"))
    with pytest.raises(ValueError, match="expected one archive per class"):
        imagenet_train(archive, new, tmp_path, quiet=True)
    archive.write_bytes(tarred({"n01.tar": tarred({"../../x": b"x"}, mode="w")}, mode="w"))
    with pytest.raises(ValueError, match=r"n01\.tar in x\.tar.*outside"):
        imagenet_train(archive, new, tmp_path, quiet=True)
    for name, content in devkit().items():
        write_image_bytes(tmp_path / name, content)
    archive.write_bytes(tarred({"1.JPEG": b"x"}, mode="w"))
    with pytest.raises(ValueError, match="has 1 images, but the devkit lists 4"):
        imagenet_val(archive, new, tmp_path, quiet=True)


# Command line and the table of sources


def test_list(capsys):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name, info in CATALOG.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert info.size in line
        assert line.endswith(info.licence)
        assert ("by hand" in line) == info.manual
    assert "image-net.org" in shown
    assert f"fgvc-aircraft-2013b.tar.gz: {'size not known'}, no checksum known" in shown
    assert main(["imagenet", "--list"]) == 0
    assert "Caltech101" not in capsys.readouterr().out


def test_by_hand_says_how(tmp_path, capsys):
    assert main(["ImageNet", "--root", str(tmp_path), "--offline", str(tmp_path)]) == 1
    assert "has no ILSVRC2012_img_train.tar (147.9 GB)" in capsys.readouterr().out
    for source in SOURCES["ImageNet"][1:]:
        assert source.urls == ()
    steps = prepare("ImageNet", tmp_path, settings=QUICK)
    assert all(HAND["ImageNet"] in step.text for step in steps[1:])


@pytest.mark.parametrize("command", [[], ["EuroSAT"], ["NoSuchSet", "--root", "x"], ["--root", "x"]])
def test_unusable_commands(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert find_name("dtd") == "DescribableTextures"


def test_the_sources_give_what_the_readers_need():
    assert list(SOURCES) == list(CATALOG)
    for name, info in CATALOG.items():
        targets = {target for source in SOURCES[name] if source.role != "annotations" for target in source.targets}
        images = [info.images] if info.images else []
        needed = {info.split_file or images[0] if images else info.layout[0], *info.layout}
        if name == "ImageNet" or name.startswith("CIFAR"):
            needed = set(info.layout)
        assert needed <= targets, name
        made = {target for source in SOURCES[name] for target in source.targets}
        for file in info.annotations:
            assert file in made or file.split("/")[0] in made, (name, file)
        for source in SOURCES[name]:
            assert source.urls or info.manual
            assert all(url.startswith(("https://", "http://", DRIVE)) for url in source.urls)
            lengths = {"md5": 32, "git": 40, "sha256": 64}
            assert all(len(value) == lengths[kind] for kind, value in source.checks.items())


def test_checksums_are_those_of_torchvision():
    """The table against what torchvision publishes, where it has the same file."""
    from torchvision import datasets as tv

    known = dict(tv.OxfordIIITPet._RESOURCES)
    known |= {tv.Flowers102._download_url_prefix + file: md5 for file, md5 in tv.Flowers102._file_dict.values()}
    known |= {tv.Food101._URL: tv.Food101._MD5, tv.DTD._URL: tv.DTD._MD5}
    known |= {tv.SUN397._DATASET_URL: tv.SUN397._DATASET_MD5}
    found = {url: source.checks.get("md5") for sources in SOURCES.values() for source in sources for url in source.urls}
    assert {url: md5 for url, md5 in found.items() if url in known} == {
        url: md5 for url, md5 in known.items() if not url.endswith("setid.mat")
    }
    assert tv.FGVCAircraft._URL in found
    from torchvision.datasets.imagenet import ARCHIVE_META

    by_name = {source.file: source.checks["md5"] for source in SOURCES["ImageNet"][1:]}
    assert by_name == dict(ARCHIVE_META.values())


def test_the_program_ends_with_1_where_something_is_missing(tmp_path):
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "datasets.prepare", "EuroSAT", "--root", str(tmp_path / "data")]
    done = subprocess.run([*command, "--offline", str(tmp_path / "here"), "--quiet"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not complete: EuroSAT" in done.stdout
