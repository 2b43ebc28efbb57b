"""Items, splits and labels of a data set."""

import logging
import random
import zipfile

import numpy as np
import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset


@pytest.fixture
def item(tmp_path):
    """Makes an item whose file exists."""

    def make(name, label=0, classname=None, domain=0):
        (tmp_path / name).touch()
        return Datum(str(tmp_path / name), label, domain, f"c{label}" if classname is None else classname)

    return make


def test_datum_is_read_only():
    datum = Datum("a.jpg", np.int64(3), classname="cat")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == ("a.jpg", 3, 0, "cat")
    assert type(datum.label) is int
    assert datum == Datum("a.jpg", 3, 0, "cat")
    assert datum != Datum("a.jpg", 4, 0, "cat")
    with pytest.raises(AttributeError):
        datum.label = 4


@pytest.mark.parametrize(
    ("args", "word"), [((3,), "impath"), (("",), "impath"), (("a", -1), "label"), (("a", "1"), "label")]
)
def test_datum_faults(args, word):
    with pytest.raises(ValueError, match=word):
        Datum(*args)


def test_classes_come_from_train_in_label_order(item):
    train = [item("a", 2), item("b", 0), item("c", 1), item("d", 0)]
    dataset = DatasetBase(train_x=train, val=[], test=[item("t", 1)])
    assert dataset.num_classes == 3
    assert dataset.classnames == ["c0", "c1", "c2"]
    assert dataset.lab2cname == {0: "c0", 1: "c1", 2: "c2"}
    assert (dataset.train_x, dataset.train_u, dataset.val) == (train, None, [])


def test_faults_of_labels(item):
    with pytest.raises(ValueError, match="no training items"):
        DatasetBase(train_x=[], test=[item("t")])
    with pytest.raises(ValueError, match="label 0 has two names: 'cat' and 'dog'"):
        DatasetBase(train_x=[item("a", 0, "cat"), item("b", 0, "dog")])
    with pytest.raises(ValueError, match="no training item has label 1, 2"):
        DatasetBase(train_x=[item("a", 0), item("b", 3)])
    with pytest.raises(ValueError, match=r"test item .* has label 1 \('c1'\), but in training this label is None"):
        DatasetBase(train_x=[item("a", 0)], test=[item("t", 1)])
    with pytest.raises(ValueError, match="validation item"):
        DatasetBase(train_x=[item("a", 0)], val=[item("v", 0, "other")])


def test_missing_images_are_counted_and_named(item, tmp_path):
    missing = [Datum(str(tmp_path / f"gone{i}.jpg"), 0, classname="c0") for i in range(7)]
    with pytest.raises(FileNotFoundError) as caught:
        DatasetBase(train_x=[item("a")], test=[*missing, missing[0]])
    message = str(caught.value)
    assert "7 images are missing" in message
    assert "gone0.jpg" in message
    assert "gone4.jpg" in message
    assert "gone5.jpg" not in message
    assert "2 more" in message
    with pytest.raises(FileNotFoundError, match="1 image is missing"):
        DatasetBase(train_x=[item("a"), missing[3]])


def test_domains(item):
    class Styles(DatasetBase):
        domains = ("photo", "sketch")

    dataset = Styles(train_x=[item("a", domain=1), item("b", domain=0), item("c", domain=1)])
    assert {key: len(items) for key, items in dataset.split_dataset_by_domain(dataset.train_x).items()} == {1: 2, 0: 1}
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match=r"belong to \['photo', 'sketch'\], but got \[clipart\]"):
        dataset.check_input_domains(["photo"], ["clipart"])
    for source, target in (([], ["photo"]), (["photo"], [])):
        with pytest.raises(ValueError, match="is empty"):
            dataset.check_input_domains(source, target)


def test_small_classes_are_taken_whole_without_a_draw(item):
    small, large = [item(f"s{i}", 0) for i in range(2)], [item(f"l{i}", 1) for i in range(5)]
    dataset = DatasetBase(train_x=small + large)
    picks = dataset.generate_fewshot_dataset(small + large, num_shots=3, rng=random.Random(5))
    assert picks == small + random.Random(5).sample(large, 3)
    again = dataset.generate_fewshot_dataset(small + large, num_shots=3, repeat=True, rng=random.Random(5))
    assert [x.label for x in again] == [0] * 3 + [1] * 3


def test_shots_below_one_and_several_lists(item, caplog):
    dataset = DatasetBase(train_x=[item("a"), item("b")])
    assert dataset.generate_fewshot_dataset(dataset.train_x) is dataset.train_x
    with caplog.at_level(logging.INFO):
        one, two = dataset.generate_fewshot_dataset(dataset.train_x, dataset.train_x, num_shots=1)
    assert len(one) == len(two) == 1
    assert "Creating a 1-shot dataset" in caplog.text


def test_build_dataset(item, caplog, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", {})

    @DATASET_REGISTRY.register()
    class Pets(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=[item("a")])

    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Pets"
    with caplog.at_level(logging.INFO):
        assert isinstance(build_dataset(cfg), Pets)
    assert "Loading dataset: Pets" in caplog.text
    cfg.DATASET.NAME = "pet"
    with pytest.raises(ValueError, match=r"DATASET\.NAME is 'pet' \(do you mean Pets\?\), expected one of Pets"):
        build_dataset(cfg)


def test_download_data_unpacks(item, tmp_path, monkeypatch):
    def fake(url, dst):
        with zipfile.ZipFile(dst, "w") as archive:
            archive.writestr("images/a.txt", "x")

    monkeypatch.setattr("dassl.data.datasets.base_dataset.download_url", fake)
    dataset = DatasetBase(train_x=[item("a")])
    dataset.download_data("http://example.org/x.zip", str(tmp_path / "new" / "x.zip"), from_gdrive=False)
    assert (tmp_path / "new" / "images" / "a.txt").read_text() == "x"
    with pytest.raises(ValueError, match=r"no \.zip, \.tar"):
        dataset.download_data("http://example.org/x.rar", str(tmp_path / "x.rar"), from_gdrive=False)
