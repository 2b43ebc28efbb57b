"""Images of your own: class folders, tables, parquet files, dataset.yaml, automatic splits, and what can be wrong."""

import csv
import json
import logging
import os
import random
import sys
from pathlib import Path

import pytest
import torch
import yaml
from known_trees import PICTURE, write_image, write_text

import clip
import train
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.custom.folder import Folder


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "folder"
    cfg.DATASET.ROOT = str(tmp_path / "mine")
    cfg.DATASET.CACHE_DIR = str(tmp_path / "cache")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 1
    return cfg


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def fill(folder, names, count):
    for name in names:
        for number in range(count):
            write_image(folder / name / f"{number}.jpg")


def build(cfg, **options):
    for key, value in options.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def rows(dataset, items):
    return [(os.path.relpath(item.impath, dataset.items_root), item.label, item.classname) for item in items]


def say(mine, **options):
    (mine / "dataset.yaml").write_text(yaml.safe_dump(options))


def write_csv(path, *table, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(table)


def test_name_in_configs():
    assert DATASET_REGISTRY.get("folder") is Folder


# Class folders.


def test_class_folders_with_splits(cfg, mine):
    for split, count in (("train", 4), ("valid", 2), ("Test", 3)):
        fill(mine / split, ["zebra", "Ant_bear", "cat"], count)
    write_text(mine / "README.md", "not an image")
    write_text(mine / "train" / "cat" / "notes.txt", "not an image")
    write_image(mine / "train" / "cat" / ".hidden.jpg")
    write_image(mine / "train" / "cat" / "deeper" / "9.PNG")
    dataset = build(cfg)
    assert dataset.classnames == ["Ant_bear", "cat", "zebra"]
    assert rows(dataset, dataset.train_x)[4:9] == [
        *((f"train/cat/{number}.jpg", 1, "cat") for number in range(4)),
        ("train/cat/deeper/9.PNG", 1, "cat"),
    ]
    assert [len(items) for items in (dataset.train_x, dataset.val, dataset.test)] == [13, 6, 9]
    assert (dataset.template, dataset.split_origin) == ("a photo of a {}.", "")


def test_shots_and_halves(cfg, mine):
    fill(mine / "train", "abcde", 6)
    fill(mine / "val", "abcde", 5)
    fill(mine / "test", "abcde", 2)
    whole = build(cfg)
    dataset = build(cfg, NUM_SHOTS=2, SUBSAMPLE_CLASSES="new")
    rng = random.Random(1)
    train = whole.generate_fewshot_dataset(whole.train_x, num_shots=2, rng=rng)
    val = whole.generate_fewshot_dataset(whole.val, num_shots=2, rng=rng)
    assert [i.impath for i in dataset.train_x] == [i.impath for i in train if i.label > 2]
    assert [i.impath for i in dataset.val] == [i.impath for i in val if i.label > 2]
    assert (dataset.classnames, len(dataset.test)) == (["d", "e"], 4)
    (cache,) = Path(cfg.DATASET.CACHE_DIR).rglob("shot_2-seed_1.json")
    assert cache.parent.name.startswith("mine-")


def test_automatic_split(cfg, mine, caplog):
    fill(mine, ["a", "b"], 10)
    fill(mine, ["c"], 3)
    with caplog.at_level(logging.INFO):
        dataset = build(cfg)
    sizes = [[sum(item.label == label for item in items) for label in range(3)] for items in parts(dataset)]
    assert sizes == [[5, 5, 1], [2, 2, 1], [3, 3, 1]]
    paths = [item.impath for items in parts(dataset) for item in items]
    assert len(set(paths)) == len(paths) == 23
    assert dataset.split_origin == "automatic, seed 1, train 0.5, val 0.2"
    cfg.SEED = 7
    assert parts(build(cfg)) == parts(dataset)  # the run's seed changes nothing
    rng = random.Random(1)  # the procedure, written out
    order = [f"a/{number}.jpg" for number in range(10)]
    rng.shuffle(order)
    assert [row[0] for row in rows(dataset, dataset.train_x)][:5] == order[:5]
    assert [row[0] for row in rows(dataset, dataset.val)][:2] == order[5:7]
    # a copy of the record keeps the split
    (record,) = Path(cfg.DATASET.CACHE_DIR).rglob("*-split.json")
    assert str(record) in caplog.text
    (mine / "split.json").write_bytes(record.read_bytes())
    write_image(mine / "a" / "new.jpg")
    kept = build(cfg)
    assert parts(kept) == parts(dataset)
    assert (kept.classnames, kept.split_origin) == (["a", "b", "c"], "")


def parts(dataset):
    return [dataset.train_x, dataset.val, dataset.test]


def test_automatic_split_as_wanted(cfg, mine):
    fill(mine, ["a", "b"], 10)
    say(mine, split={"train": 0.8, "val": 0.0, "seed": 3})
    dataset = build(cfg)
    assert [len(items) for items in parts(dataset)] == [16, 0, 4]
    assert dataset.split_origin == "automatic, seed 3, train 0.8, val 0"
    say(mine, split={"train": 0.8, "val": 0.0, "seed": 4})
    assert parts(build(cfg)) != parts(dataset)


def test_record_that_cannot_be_written_is_a_warning(cfg, mine, tmp_path, caplog):
    fill(mine, ["a", "b"], 3)
    (tmp_path / "cache").write_text("")
    assert len(build(cfg).train_x) == 2
    assert "split is not recorded" in caplog.text


def test_class_folders_of_numbers_are_in_the_order_of_numbers(cfg, mine, caplog):
    fill(mine, [str(number) for number in range(1, 12)], 3)
    assert build(cfg).classnames == [str(number) for number in range(1, 12)]
    assert "have no name but a number" in caplog.text
    caplog.clear()
    say(mine, classnames=[f"class {number}" for number in range(1, 12)])
    assert build(cfg).classnames[9:] == ["class 10", "class 11"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_own_names_and_template(cfg, mine):
    fill(mine, ["am", "be", "cc"], 4)
    say(mine, classnames={"be": "porcini", "am": "fly agaric"}, template="a photo of a {}, a type of mushroom.")
    dataset = build(cfg)
    assert dataset.classnames == ["fly agaric", "porcini", "cc"]
    assert dataset.template == "a photo of a {}, a type of mushroom."
    (mine / "dataset.yaml").rename(mine / "other.yaml")
    assert build(cfg).classnames == ["am", "be", "cc"]
    assert build(cfg, ROOT=str(mine / "other.yaml")).classnames == dataset.classnames


def test_class_named_like_a_split(cfg, mine):
    fill(mine, ["bus", "train", "tram"], 4)
    assert build(cfg).classnames == ["bus", "train", "tram"]
    fill(mine, ["test"], 4)
    with pytest.raises(ValueError, match="test, train and beside them bus, tram: splits or classes"):
        build(cfg)


def test_train_and_test_alone(cfg, mine):
    fill(mine / "train", "ab", 10)
    fill(mine / "test", "ab", 2)
    dataset = build(cfg)
    assert [len(items) for items in parts(dataset)] == [20, 0, 4]
    say(mine, split={"val": 0.3})
    dataset = build(cfg)
    assert [len(items) for items in parts(dataset)] == [14, 6, 4]
    assert dataset.split_origin == "validation 0.3 of training, seed 1"


def test_train_and_val_alone(cfg, mine, caplog):
    fill(mine / "train", "ab", 3)
    fill(mine / "val", "ab", 2)
    assert [len(items) for items in parts(build(cfg))] == [6, 0, 4]
    assert "no test images: the validation images are the test" in caplog.text


def test_test_alone(cfg, mine, caplog):
    fill(mine / "test", "ab", 3)
    dataset = build(cfg)
    assert dataset.train_x == dataset.test
    assert "do not train on it" in caplog.text


def test_links_and_loops(cfg, mine, tmp_path):
    fill(tmp_path / "far", ["a"], 3)
    fill(mine, ["b"], 3)
    (mine / "a").symlink_to(tmp_path / "far" / "a")
    (tmp_path / "far" / "a" / "loop").symlink_to(tmp_path / "far" / "a")
    assert [len(items) for items in parts(build(cfg))] == [2, 2, 2]


# Tables.

TABLE = [("a/1.jpg", "cat"), ("a/2.jpg", "dog"), ("b/3.jpg", "cat"), ("b/4.jpg", "dog"), ("b/5.jpg", "dog")]
SPLIT = ["train", "train", "test", "test", "val"]


def table_images(mine):
    for path, _ in TABLE:
        write_image(mine / path)


def expected_table():
    return [
        [("a/1.jpg", 0, "cat"), ("a/2.jpg", 1, "dog")],
        [("b/5.jpg", 1, "dog")],
        [("b/3.jpg", 0, "cat"), ("b/4.jpg", 1, "dog")],
    ]


def write_table(mine, form):
    """One table in different forms; returns its path."""
    lines = [(*row, split) for row, split in zip(TABLE, SPLIT)]
    records = [{"file_name": path, "class": label, "split": split} for path, label, split in lines]
    if form in ("csv", "semicolon", "tsv"):
        path = mine / f"items.{'tsv' if form == 'tsv' else 'csv'}"
        delimiter = {"csv": ",", "semicolon": ";", "tsv": "\t"}[form]
        write_csv(path, ("path", "label", "split"), *lines, delimiter=delimiter)
    elif form == "numbers":
        path = mine / "items.csv"
        numbers = [(p, ["cat", "dog"].index(label), split, label) for p, label, split in lines]
        write_csv(path, ("path", "label", "split", "classname"), *numbers)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel saves it
    elif form == "json":
        path = mine / "items.json"
        path.write_text(json.dumps(records))
    elif form == "lists":
        path = mine / "items.json"
        path.write_text(json.dumps(lines))
    elif form == "jsonl":
        path = mine / "items.jsonl"
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    else:
        path = mine / "split.json"
        numbers = {"train": [], "val": [], "test": []}
        for p, label, split in lines:
            numbers[split].append([p, ["cat", "dog"].index(label), label])
        path.write_text(json.dumps(numbers))
    return path


@pytest.mark.parametrize("form", ["csv", "semicolon", "tsv", "numbers", "json", "lists", "jsonl", "split file"])
def test_tables_in_every_form(cfg, mine, form):
    table_images(mine)
    path = write_table(mine, form)
    for root in (mine, path):  # a folder with a table of a usual name, or the table itself
        dataset = build(cfg, ROOT=str(root))
        assert [rows(dataset, items) for items in parts(dataset)] == expected_table()
        assert dataset.classnames == ["cat", "dog"]


def test_table_with_other_names(cfg, mine, tmp_path):
    for path, _ in TABLE:
        write_image(tmp_path / "elsewhere" / path)
    lines = [(path, label, split) for (path, label), split in zip(TABLE, SPLIT)]
    write_csv(mine / "lists" / "my.csv", ("img", "species", "part"), *lines)
    say(
        mine,
        items="lists/*.csv",
        images="../elsewhere",
        columns={"path": "img", "label": "species", "split": "part"},
        classnames={"cat": "tabby"},
    )
    dataset = build(cfg)
    assert dataset.items_root == str(tmp_path / "elsewhere")
    assert [[row[0] for row in rows(dataset, items)] for items in parts(dataset)] == [
        [row[0] for row in part] for part in expected_table()
    ]
    assert dataset.classnames == ["tabby", "dog"]


def test_absolute_paths_below_the_images(cfg, mine):
    table_images(mine)
    lines = [(str(mine / path), label, split) for (path, label), split in zip(TABLE, SPLIT)]
    write_csv(mine / "items.csv", ("path", "label", "split"), *lines)
    dataset = build(cfg)
    assert [rows(dataset, items) for items in parts(dataset)] == expected_table()


def test_table_without_splits(cfg, mine):
    names = ["cat"] * 5 + ["dog"] * 5
    for number in range(10):
        write_image(mine / f"{number}.jpg")
    lines = [(f"{number}.jpg", number // 5, names[number]) for number in range(10)]
    write_csv(mine / "labels.csv", ("path", "label", "classname"), *lines)
    dataset = build(cfg)
    assert [len(items) for items in parts(dataset)] == [4, 2, 4]
    (record,) = Path(cfg.DATASET.CACHE_DIR).rglob("*-split.json")
    (mine / "split.json").write_bytes(record.read_bytes())
    say(mine, items="split.json")
    assert parts(build(cfg)) == parts(dataset)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            [("a.jpg", 0), ("a.jpg", 0), ("b.jpg", 1)],
            r"line 3 of .*items\.csv\" names a\.jpg again; it stood in line 2",
        ),
        ([("a.jpg", 0), ("./a.jpg", 1)], r"line 3 .*again with another label or split \(0, 1\)"),
        ([("a.jpg", 0), ("b.jpg", 2)], r"numbers of 2 classes must be 0 to 1, but no image has 1"),
        ([("a.jpg", 1), ("b.jpg", 2)], r"no image has 0"),
        ([("a.jpg", 0), ("b.jpg", 10**15)], r"no image has 1; renumber"),
        ([("a.jpg", "")], r"line 2 .*label ''"),
        ([("", 0)], r"line 2 .*path ''"),
        ([("../a.jpg", 0)], r"line 2 .*path '\.\./a\.jpg', expected one below"),
        ([("/etc/passwd", 0)], r"line 2 .*path '/etc/passwd', expected one below .*`images: FOLDER`"),
        ([("a.jpg",)], r"line 2 .*2 fields of the header"),
        ([("a.jpg", 0, 1)], r"line 2 .*2 fields of the header"),
        ([], "has no rows"),
        ([("a.jpg", "x"), ("b.jpg", "y")], r"class 'x' has 1 image\(s\), but a split .* needs 3"),
    ],
)
def test_rows_that_are_refused(cfg, mine, lines, words):
    for name in ("a.jpg", "b.jpg"):
        write_image(mine / name)
    write_csv(mine / "items.csv", ("path", "label"), *lines)
    with pytest.raises(ValueError, match=words):
        build(cfg)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("items.csv", "", "is empty"),
        ("items.csv", "picture,label\na.jpg,0\n", "no column 'path' or 'file_name'.*found picture, label"),
        ("items.csv", "path,name\na.jpg,0\n", "no column 'label' or .*`columns: {label: NAME}`"),
        ("items.csv", "path,label,split\na.jpg,0,training set\n", "line 2 .*split 'training set', expected train, val"),
        ("items.csv", "path,label,split\na.jpg,0,train\nb.jpg,0,\n", "line 3 .*names no split, but other images do"),
        ("items.csv", 'path,label\n"a.jpg,0\n', "not a table of text"),
        ("items.csv", b"path,label\n\xff\xfe.jpg,0\n", "not a table of text"),
        ("items.csv", "path,label,classname\na.jpg,0,x\nb.jpg,0,y\n", "line 3 .*class 0 the name 'y', before 'x'"),
        ("items.json", "{", "not a JSON file"),
        ("items.json", "3", "holds int"),
        ("items.json", "[]", "has no rows"),
        ("items.json", "{}", "is empty"),
        ("items.json", '{"train": 3}', "train in .* is int"),
        ("items.json", '{"trains": []}', "split 'trains'"),
        ("items.json", '[["a.jpg"]]', r"entry 0 .*expected \[path, label\]"),
        ("items.json", '{"train": [["a.jpg", 0, 3]]}', "entry 0 in train .*class name 3"),
        ("items.json", '[["a.jpg", true]]', "entry 0 .*label True"),
        ("items.json", '[["a.jpg", -1]]', "entry 0 .*label -1"),
        ("items.json", '[["a.jpg", 0], ["b.jpg", "x"]]', "mixes class numbers and texts"),
        ("items.jsonl", '{"path": "a.jpg", "label": 0}\n{', "line 2 .*not JSON"),
        ("items.jsonl", "3\n", "line 1 .*expected an object"),
        ("items.jsonl", b"\xff\n", "line 1 .*not JSON"),
        ("items.csv", "path,label,split\na.jpg,x,train\nb.jpg,y,test\n", "no training images for 1 class.*: y"),
        ("items.csv", "path,label,split\na.jpg,x,val\nb.jpg,x,test\n", "has no training images, only test, val"),
    ],
)
def test_tables_that_are_refused(cfg, mine, name, content, words):
    for image in ("a.jpg", "b.jpg"):
        write_image(mine / image)
    (mine / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        build(cfg)


def test_table_that_names_a_missing_image(cfg, mine):
    write_image(mine / "a.jpg")
    write_csv(mine / "items.csv", ("path", "label", "split"), ("a.jpg", "x", "train"), ("b.jpg", "x", "test"))
    with pytest.raises(FileNotFoundError, match=r'(?s)mine": 1 image is missing:.*b\.jpg'):
        build(cfg)


def test_two_tables(cfg, mine):
    table_images(mine)
    write_table(mine, "csv")
    write_table(mine, "json")
    with pytest.raises(ValueError, match=r"has items\.csv, items\.json; `items: FILE`"):
        build(cfg)
    say(mine, items="items.json")
    assert len(build(cfg).train_x) == 2
    say(mine, items="items.*")
    with pytest.raises(ValueError, match=r"cannot read items\.csv, items\.json"):
        build(cfg)
    say(mine, items="other.csv")
    with pytest.raises(FileNotFoundError, match=r"has no other\.csv"):
        build(cfg)


# dataset.yaml and roots.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a YAML file"),
        ("[1]", "holds list, expected some of classnames"),
        ("names: {a: b}", "holds names, expected some of classnames, template"),
        ("template: a photo", "template in .*'a photo', expected {} once"),
        ("template: 'a {} or {b}'", "expected {} once"),
        ("template: 3", "is 3, expected a text"),
        ("classnames: {a: 3}", "a of classnames in .* is 3, expected a text"),
        ("classnames: {no: x}", "key False: put quotes"),
        ("classnames: [a]", "1 class names, but .* has 2 classes"),
        ("classnames: {c: x}", "names the class.* 'c', but .* has 'a', 'b'"),
        ("classnames: 3", "classnames in .* is 3"),
        ("columns: {paths: a}", "columns in .* expected names for some of path"),
        ("split: {train: 0.9, val: 0.2}", "leaves nothing for test"),
        ("split: {train: 2}", "train of split .* is 2"),
        ("split: {train: 0}", "train of split .* is 0"),
        ("split: {seed: one}", "seed of split"),
        ("split: {test: 0.5}", "expected some of train, val"),
    ],
)
def test_options_that_are_refused(cfg, mine, content, words):
    fill(mine, "ab", 3)
    (mine / "dataset.yaml").write_text(content)
    with pytest.raises(ValueError, match=words):
        build(cfg)


def test_empty_options(cfg, mine):
    fill(mine, "ab", 3)
    (mine / "dataset.yml").write_text("# nothing yet\n")
    assert build(cfg).classnames == ["a", "b"]


def test_roots_that_are_not_there(cfg, mine):
    with pytest.raises(FileNotFoundError, match=r"DATASET\.ROOT is not set.*--root"):
        build(cfg, ROOT="")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        build(cfg, ROOT=str(mine / "nowhere"))
    with pytest.raises(ValueError, match="has no class folders"):
        build(cfg, ROOT=str(mine))
    (mine / "x.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"cannot read x\.xlsx: expected one of \.csv"):
        build(cfg, ROOT=str(mine / "x.xlsx"))
    say(mine, images="pictures")
    with pytest.raises(FileNotFoundError, match=r"no folder .*pictures"):
        build(cfg, ROOT=str(mine))


def test_empty_class_folder(cfg, mine):
    fill(mine / "train", "ab", 3)
    (mine / "train" / "c").mkdir()
    with pytest.raises(ValueError, match=r'class folder ".*train/c" has no images; remove it or fill it'):
        build(cfg)
    (mine / "train" / "c").rmdir()
    (mine / "test").mkdir()
    with pytest.raises(ValueError, match=r'test/" has no class folders|test" has no class folders'):
        build(cfg)


def test_unreadable_image(cfg, mine):
    for split in ("train", "test"):
        fill(mine / split, "ab", 1)
    (mine / "test" / "b" / "0.jpg").write_bytes(PICTURE[:50])
    manager = DataManager(cfg)
    with pytest.raises(ValueError, match=r'cannot decode the image ".*test/b/0\.jpg"'):
        list(manager.test_loader)


def test_source_is_only_read(cfg, mine):
    fill(mine, "ab", 4)
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    build(cfg, NUM_SHOTS=1)
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before


# Parquet.


def write_parquet(path, labels, images=None, names=None, structs=True, **more):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [PICTURE] * len(labels) if images is None else images
    cells = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)] if structs else images
    table = pa.table({"image": cells, "label": labels, **more})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_parquet_as_it_is_published(cfg, mine, caplog):
    for number, labels in enumerate(([0, 1, 1], [1, 0, 0])):
        write_parquet(mine / "data" / f"train-{number:05d}-of-00002.parquet", labels, names=["tench", "goldfish"])
    write_parquet(mine / "data" / "validation-00000-of-00001.parquet", [0], names=["tench", "goldfish"])
    write_parquet(mine / "data" / "test-00000-of-00001.parquet", [1, 0], names=["tench", "goldfish"])
    with caplog.at_level(logging.INFO):
        dataset = build(cfg)
    assert "Writing the images of 4 parquet file(s)" in caplog.text
    assert dataset.classnames == ["tench", "goldfish"]
    assert [[item.label for item in items] for items in parts(dataset)] == [[0, 1, 1, 1, 0, 0], [0], [1, 0]]
    assert rows(dataset, dataset.test)[0] == ("data/test-00000-of-00001/0000000.jpg", 1, "goldfish")
    assert all(Path(item.impath).read_bytes() == PICTURE for items in parts(dataset) for item in items)
    caplog.clear()
    assert parts(build(cfg)) == parts(dataset)
    assert "Writing the images" not in caplog.text
    write_parquet(mine / "data" / "test-00000-of-00001.parquet", [1, 0, 0], names=["tench", "goldfish"])
    assert len(build(cfg).test) == 3  # another state of the files


@pytest.mark.parametrize("structs", [True, False])
def test_parquet_with_other_columns(cfg, mine, structs):
    split = ["train"] * 4 + ["test"] * 2
    labels = ["b", "a", "b", "a", "a", "b"]
    write_parquet(mine / "birds.parquet", [0] * 6, structs=structs, species=labels, split=split)
    say(mine, columns={"label": "species"}, classnames={"a": "Parus ater"})
    for root in (mine, mine / "birds.parquet"):
        dataset = build(cfg, ROOT=str(root))
        assert dataset.classnames == ["Parus ater", "b"]
        assert [item.label for item in dataset.train_x + dataset.test] == [1, 0, 1, 0, 0, 1]


def test_parquet_without_splits_gets_one(cfg, mine):
    write_parquet(mine / "all.parquet", [0, 1] * 5, names=["x", "y"])
    dataset = build(cfg, NUM_SHOTS=1)
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (2, 2, 4)
    assert dataset.split_origin.startswith("automatic")


def test_parquet_that_is_refused(cfg, mine):
    path = mine / "train.parquet"
    write_parquet(path, [0, 1], images=[PICTURE, None])
    with pytest.raises(ValueError, match=r'row 1 of ".*train\.parquet" has no image bytes but NoneType'):
        build(cfg)
    write_parquet(path, [0, 1], images=[PICTURE, b"hello"])
    with pytest.raises(ValueError, match=r"row 1 .*holds no image that is known"):
        build(cfg)
    write_parquet(path, [0, None])
    with pytest.raises(ValueError, match=r"row 1 .*label None"):
        build(cfg)
    write_parquet(path, [0, 1])
    say(mine, columns={"image": "picture"})
    with pytest.raises(ValueError, match="no column 'picture', found image, label"):
        build(cfg)
    (mine / "dataset.yaml").unlink()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged or no parquet file"):
        build(cfg)
    path.write_bytes(content[:40] + bytes(255 - byte for byte in content[40:400]) + content[400:])
    with pytest.raises(ValueError, match=r"damaged|known|no image"):
        build(cfg)
    assert not list(Path(cfg.DATASET.CACHE_DIR).rglob("rows.json"))


def test_parquet_without_pyarrow(cfg, mine, monkeypatch):
    (mine / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"x\.parquet\" needs pyarrow, which is not installed: pip install pyarrow"):
        build(cfg)


# With a method.


@pytest.mark.slow
def test_own_images_train_a_method(mine, tmp_path):
    torch.manual_seed(0)
    model = clip.CLIP(
        embed_dim=16,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=16,
        context_length=77,
        vocab_size=2048,
        transformer_width=16,
        transformer_heads=2,
        transformer_layers=1,
        vision_heads=2,
    )
    clip.save_model(model, tmp_path / "tiny.safetensors")
    fill(mine, "abcd", 6)
    say(mine, template="a sketch of a {}.", classnames={"a": "fly agaric"})
    arguments = ["--root", str(mine), "--seed", "1", "--output-dir", str(tmp_path / "run"), "--trainer", "CoOp"]
    arguments += ["--dataset-config-file", str(Path(train.__file__).parent / "configs/datasets/folder.yaml")]
    pairs = {
        "DATASET.NUM_SHOTS": 1,
        "DATASET.SUBSAMPLE_CLASSES": "base",
        "DATASET.CACHE_DIR": tmp_path / "cache",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 2,
        "INPUT.SIZE": (32, 32),
        "MODEL.BACKBONE.NAME": tmp_path / "tiny.safetensors",
        "OPTIM.MAX_EPOCH": 1,
    }
    result = train.run([*arguments, *(str(item) for pair in pairs.items() for item in pair)])
    assert result["counts"]["classes"] == 2
    assert (result["counts"]["train"], result["counts"]["val"], result["counts"]["evaluated"]) == (2, 2, 4)
    assert result["fingerprint"]["split_origin"] == "automatic, seed 1, train 0.5, val 0.2"
    assert result["fingerprint"]["templates"] == "a sketch of a {}."
    assert "fly agaric" in result["per_class"]
