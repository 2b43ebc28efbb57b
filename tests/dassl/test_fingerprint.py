"""Hashes of data protocols."""

import hashlib
import json
import os
from pathlib import Path

from torchvision import transforms as T

from dassl.data.datasets import Datum
from dassl.data.fingerprint import classnames_hash, relative_paths, split_hash, transform_repr

GOLDEN = Path(__file__).parents[1] / "golden"


def test_class_names_have_their_published_hashes():
    names = json.loads((GOLDEN / "class_names.json").read_text())["names"]
    known = json.loads((GOLDEN / "real_datasets.json").read_text())["datasets"]
    shared = [dataset for dataset, entry in known.items() if dataset in names and "names_sha256" in entry]
    assert len(shared) >= 5
    for dataset in shared:
        assert classnames_hash(names[dataset]) == known[dataset]["names_sha256"], dataset


def test_split_hash_is_relative_and_ordered(tmp_path):
    def items(root, *rows):
        return [Datum(str(Path(root) / path), label) for path, label in rows]

    rows = [("a/1.jpg", 0), ("b/2.jpg", 1)]
    here = split_hash(items(tmp_path / "x", *rows), tmp_path / "x")
    assert here == split_hash(items("/elsewhere/data", *rows), "/elsewhere/data")
    assert here == hashlib.sha256(b"a/1.jpg\t0\nb/2.jpg\t1\n").hexdigest()
    others = [rows[::-1], rows[:1], [("a/1.jpg", 1), ("b/2.jpg", 1)], [("a/1.jpg", 0), ("b/3.jpg", 1)]]
    hashes = {split_hash(items(tmp_path, *other), tmp_path) for other in others}
    assert len(hashes | {here}) == 5
    assert split_hash(items("", *rows)) == here


def test_relative_paths_equal_relpath(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["a/b/1.jpg", "a/1.jpg", "1.jpg", "./a/./2.jpg", "../x/3.jpg", "a/b/", "a/..", "a//b/4.jpg"]
    paths += [str(tmp_path / path) for path in paths] + ["/elsewhere/5.jpg"]
    for root in (".", "a", str(tmp_path), str(tmp_path / "a"), "/"):
        found = [path for path, _ in relative_paths([Datum(path) for path in paths], root)]
        assert found == [Path(os.path.relpath(path, root)).as_posix() for path in paths]


def test_transform_repr():
    tfm = T.Compose([T.Resize(4), T.RandomApply([T.GaussianBlur(3)], p=0.5), T.ToTensor()])
    text = transform_repr(tfm)
    assert "\n" not in text
    assert text.startswith("Resize(size=4")
    assert text.endswith("; ToTensor()")
    assert transform_repr([T.ToTensor(), None]) == "ToTensor() | None"
