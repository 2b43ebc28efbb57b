"""Readers of the known data sets on miniature trees, against lists of the original readers and real class names."""

import json
import logging
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from known_trees import (
    GOLDEN,
    golden,
    real_names,
    write_car_annotations,
    write_car_names,
    write_flower_labels,
    write_golden_tree,
    write_image,
    write_text,
)

import datasets
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset
from dassl.data.fingerprint import classnames_hash
from datasets.prepare.catalog import CATALOG, prepare_command
from datasets.standard import differences, make_split, picks_hash, read_classnames

RAW = golden("raw_readers")
READERS = RAW["readers"]
SPLIT_FILES = [name for name, info in CATALOG.items() if info.split_file]
VARIANTS = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The golden tree, not to be changed."""
    return write_golden_tree(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.CACHE_DIR = str(tmp_path / "cache")
    cfg.SEED = 1
    return cfg


def take(whole, tmp_path, name):
    """A copy of one data set of the golden tree, to be changed; returns the data root and the data set's folder."""
    folder = CATALOG[name].folder
    shutil.copytree(whole / folder, tmp_path / "data" / folder)
    return tmp_path / "data", tmp_path / "data" / folder


def build(cfg, root, name, **options):
    cfg.DATASET.ROOT, cfg.DATASET.NAME = str(root), name
    for key, value in options.items():
        if key == "SEED":
            cfg.SEED = value
        else:
            cfg.DATASET[key] = value
    return build_dataset(cfg)


def rows(items, root):
    return [[Path(os.path.relpath(item.impath, root)).as_posix(), item.label, item.classname] for item in items]


def fill_v2(root):
    """Put an image into every empty folder of ImageNetV2."""
    for path in (root / "imagenetv2" / "imagenetv2-matched-frequency-format-val").iterdir():
        if not any(path.iterdir()):
            write_image(path / "1.jpeg")


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_splits_on_request_equal_the_original_procedure(whole, name):
    rng = random.Random(1)
    before = random.getstate()
    splits = DATASET_REGISTRY.get(name).make_items(whole / CATALOG[name].folder, rng)
    for part, items in zip(("train", "val", "test"), splits):
        assert rows(items, whole) == READERS[name][part]
    assert rng.random() == READERS[name]["next_random"]
    assert random.getstate() == before


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_split_file_gives_the_same_as_the_annotations(whole, tmp_path, cfg, name):
    root, folder = take(whole, tmp_path, name)
    make_split(name, root).rename(folder / CATALOG[name].split_file)
    dataset = build(cfg, root, name)
    for part in ("train", "val", "test"):
        items = dataset.train_x if part == "train" else getattr(dataset, part)
        assert rows(items, root) == READERS[name][part]
    assert dataset.classnames == READERS[name]["classnames"]
    assert dataset.num_classes == READERS[name]["num_classes"]
    assert dataset.template == CATALOG[name].template


@pytest.mark.parametrize("name", ["FGVCAircraft", "ImageNet", "ImageNetSketch", "ImageNetA", "ImageNetR"])
def test_readers_without_split_files(whole, cfg, name):
    before = sorted(whole.rglob("*"))
    dataset, known = build(cfg, whole, name), READERS[name]
    assert rows(dataset.test, whole) == known["test"]
    train = known["test"] if known["train"] == "same list as test" else known["train"]
    assert rows(dataset.train_x, whole) == train
    if known["val"] is None:
        assert not dataset.val
    else:
        assert rows(dataset.val, whole) == (known["test"] if known["val"] == "same list as test" else known["val"])
    assert dataset.classnames == known["classnames"]
    assert dataset.num_classes == known["num_classes"]
    assert sorted(whole.rglob("*")) == before


def test_imagenetv2(whole, tmp_path, cfg):
    root, folder = take(whole, tmp_path, "ImageNetV2")
    with pytest.raises(ValueError, match=r'class folder ".*val/1" is empty'):
        build(cfg, root, "ImageNetV2")
    fill_v2(root)
    dataset = build(cfg, root, "ImageNetV2")
    known = READERS["ImageNetV2"]
    assert [row for row in rows(dataset.test, root) if row[1] in (0, 2, 10, 100, 999)] == known["test"]
    assert (dataset.train_x, dataset.val, dataset.num_classes) == (dataset.test, [], known["num_classes"])
    assert [item.label for item in dataset.test] == sorted(item.label for item in dataset.test)
    assert dataset.classnames == [f"name {i}" for i in range(1000)]
    shutil.rmtree(folder / "imagenetv2-matched-frequency-format-val" / "7")
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the folders 0 to 999: 7\. .*prepare ImageNetV2"):
        build(cfg, root, "ImageNetV2")


@pytest.mark.parametrize("key", RAW["fewshot_with_split_json_present"])
def test_picks_and_halves_equal_the_original(whole, tmp_path, cfg, key):
    name, shots, seed, half = (part.split("=")[-1] for part in key.split(" "))
    known = RAW["fewshot_with_split_json_present"][key]
    root, folder = take(whole, tmp_path, name)
    if CATALOG[name].split_file:
        make_split(name, root).rename(folder / CATALOG[name].split_file)
    dataset = build(cfg, root, name, NUM_SHOTS=int(shots), SEED=int(seed), SUBSAMPLE_CLASSES=half)
    assert rows(dataset.train_x, root) == known["train"]
    assert rows(dataset.test, root) == known["test"]
    assert rows(dataset.val, root) == (known["test"] if known["val"] == "same list as test" else known["val"])
    assert dataset.classnames == known["classnames"]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_imagenet_ignore_shots_and_halves(whole, tmp_path, cfg, name):
    root, _ = take(whole, tmp_path, name)
    if name == "ImageNetV2":
        fill_v2(root)
    expected = build(cfg, root, name)
    dataset = build(cfg, root, name, NUM_SHOTS=1, SUBSAMPLE_CLASSES="new")
    assert (dataset.train_x, dataset.test, dataset.classnames) == (expected.test, expected.test, expected.classnames)


@pytest.mark.parametrize("name", ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"])
def test_variants_take_the_class_names_of_imagenet(whole, tmp_path, cfg, name):
    root, folder = take(whole, tmp_path, name)
    if name == "ImageNetV2":
        fill_v2(root)
    expected = build(cfg, root, name).classnames
    (root / "imagenet").mkdir()
    (folder / "classnames.txt").rename(root / "imagenet" / "classnames.txt")
    assert build(cfg, root, name).classnames == expected
    (root / "imagenet" / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"class names .*classnames\.txt.*datasets\.prepare {name}"):
        build(cfg, root, name)


def test_cifar_in_both_forms(tmp_path, cfg):
    for part, count in (("train", 3), ("test", 2)):
        for folder in ("a0", "b1"):
            for number in range(count):
                write_image(tmp_path / "cifar100" / "images" / part / folder / f"{number}.png")
    plain = build(cfg, tmp_path, "CIFAR100", NUM_SHOTS=2)
    assert (plain.classnames, len(plain.train_x), plain.val) == (["a0", "b1"], 4, plain.test)
    write_text(tmp_path / "cifar100" / "classnames_for_cifar100.txt", "b1 blue whale\na0 aquarium_fish\n")
    named = build(cfg, tmp_path, "MYCIFAR100", NUM_SHOTS=2)
    assert named.classnames == ["aquarium_fish", "blue whale"]
    assert [item.impath for item in named.train_x] == [item.impath for item in plain.train_x]
    (tmp_path / "cifar100").rename(tmp_path / "cifar10")
    assert build(cfg, tmp_path, "CIFAR10").classnames == ["a0", "b1"]


# Real class names, from trees whose folders and annotations are written backwards from the names.


def real_tree(name, root, per_class=4):
    """A tree with the real classes, `per_class` images each; returns the data set's folder."""
    folder, names = root / CATALOG[name].folder, real_names(name)
    if name in ("Caltech101", "EuroSAT", "Food101", "DescribableTextures"):
        old = {"airplane": "airplanes", "face": "Faces", "leopard": "Leopards", "motorbike": "Motorbikes"}
        old |= {new: key for key, new in datasets.eurosat.NEW_NAMES.items()}
        folders = [old.get(text, text) for text in names] + (
            ["BACKGROUND_Google", "Faces_easy"] if name == "Caltech101" else []
        )
        for text in folders:
            for number in range(per_class):
                write_image(folder / CATALOG[name].images / text / f"{number}.jpg")
    elif name == "OxfordPets":
        lines = [f"{text.title()}_{{}} {label + 1} 1 1" for label, text in enumerate(names)]
        text = "\n".join(line.format(number) for line in lines for number in range(per_class))
        write_text(folder / "annotations/trainval.txt", text)
        write_text(folder / "annotations/test.txt", "\n".join(line.format(9) for line in lines))
    elif name == "StanfordCars":
        last = [" ".join([*text.split(" ")[1:], text.split(" ")[0]]) for text in names]
        labels = list(range(1, len(names) + 1))
        write_car_names(folder / "devkit/cars_meta.mat", last)
        write_car_annotations(folder / "devkit/cars_train_annos.mat", labels * per_class)
        write_car_annotations(folder / "cars_test_annos_withlabels.mat", labels)
    elif name == "OxfordFlowers":
        write_flower_labels(folder / "imagelabels.mat", list(range(1, len(names) + 1)) * per_class)
        write_text(folder / "cat_to_name.json", json.dumps({str(i + 1): text for i, text in enumerate(names)}))
    elif name == "SUN397":
        paths = ["/x/" + "/".join(reversed(text.split(" "))) for text in names]
        write_text(folder / "ClassName.txt", "\n".join(paths))
        lines = [f"{path}/sun_{number}.jpg" for path in paths for number in range(per_class)]
        write_text(folder / "Training_01.txt", "\n".join(lines))
        write_text(folder / "Testing_01.txt", "\n".join(f"{path}/sun_t.jpg" for path in paths))
    elif name == "UCF101":
        actions = [text.replace("_", "") for text in names]
        numbers = "\n".join(f"{number} {action}" for number, action in enumerate(actions, start=1))
        write_text(folder / "ucfTrainTestlist/classInd.txt", numbers)
        for part, count in (("train", per_class), ("test", 1)):
            lines = [f"{action}/v_{action}_g{number:02d}_c01.avi" for action in actions for number in range(count)]
            write_text(folder / f"ucfTrainTestlist/{part}list01.txt", "\n".join(lines))
    return folder


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_real_class_names_come_out_of_the_annotations(tmp_path, name):
    folder = real_tree(name, tmp_path)
    splits = DATASET_REGISTRY.get(name).make_items(folder, random.Random(0))
    assert all(splits)
    for items in splits:
        names = dict(sorted({item.label: item.classname for item in items}.items()))
        assert list(names.values()) == real_names(name)
        assert list(names) == list(range(CATALOG[name].classes))
    assert classnames_hash(real_names(name)) == CATALOG[name].names_sha256


def test_real_aircraft_names(tmp_path, cfg):
    names, folder = real_names("FGVCAircraft"), tmp_path / "fgvc_aircraft"
    write_text(folder / "variants.txt", "\n".join(names) + "\n")
    for offset, part in enumerate(("train", "val", "test")):
        lines = [f"{3 * label + offset:07d} {name}" for label, name in enumerate(names)]
        write_text(folder / f"images_variant_{part}.txt", "\n".join(reversed(lines)) + "\n")
        for line in lines:
            write_image(folder / "images" / f"{line[:7]}.jpg")
    dataset = build(cfg, tmp_path, "FGVCAircraft")
    assert dataset.classnames == names
    assert classnames_hash(names) == CATALOG["FGVCAircraft"].names_sha256


def test_real_imagenet_names(tmp_path, cfg, caplog):
    names, folder = real_names("ImageNet"), tmp_path / "imagenet"
    wnids = [f"n{number:08d}" for number in range(1000)]
    write_text(folder / "classnames.txt", "".join(f"{wnid} {name}\n" for wnid, name in zip(wnids, names)))
    for wnid in wnids:
        for part in ("train", "val"):
            write_image(folder / "images" / part / wnid / "1.JPEG")
    with caplog.at_level(logging.WARNING):
        dataset = build(cfg, tmp_path, "ImageNet")
    assert dataset.classnames == names  # two missiles and two sunglasses among them
    assert classnames_hash(names) == CATALOG["ImageNet"].names_sha256
    assert "1000 training images instead of 1281167; 1000 test images instead of 50000" in caplog.text
    assert "class names" not in caplog.text


# The catalogue.


def test_catalogue_agrees_with_the_published_figures():
    known = json.loads((GOLDEN / "real_datasets.json").read_text())["datasets"]
    halves = {case["dataset"]: case["n"] for case in golden("base_new")["large"]}
    assert len(known) == 10
    for name, entry in known.items():
        info = CATALOG[name]
        assert info.classes == entry["num_classes"]
        assert f"{info.folder}/{info.images}".strip("/") == entry["image_root"]
        assert info.names_sha256 == entry["names_sha256"]
        assert info.picks_sha256 == entry["picks_sha256"]["shots_16-seed_1"]
    assert all(CATALOG[name].classes == number for name, number in halves.items() if name in CATALOG)


def test_every_reader_is_registered_with_a_config():
    folder = Path(datasets.__file__).parents[1] / "configs" / "datasets"
    assert len(CATALOG) == 18
    for name, info in CATALOG.items():
        assert DATASET_REGISTRY.get(name).info is info
        assert DATASET_REGISTRY.get(name).template.count("{}") == 1
        cfg = get_cfg_default()
        cfg.merge_from_file(folder / f"{info.config}.yaml")
        read = cfg.DATASET.NAME
        assert read == name
        assert set(info.sha256) | set(info.git_blob) >= ({info.split_file} if info.split_file else set())


def test_table_of_the_documentation_is_the_catalogue():
    text = (Path(datasets.__file__).parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count(" | ") == 7]
    lines = {line.split(" | ")[0].strip("| "): line for line in rows}
    for name, info in CATALOG.items():
        counts = " / ".join("–" if count is None else f"{count:,}" for count in (info.train, info.val, info.test))
        parts = [f"`{info.config}`", info.title, info.home, f"{info.classes:,}", counts, info.size, info.licence]
        assert not [part for part in [*parts, f"`{info.folder}/`", info.split_file] if part not in lines[name]], name


def test_names_that_readers_for_coop_import(whole):
    from datasets.dtd import DescribableTextures
    from datasets.imagenet import ImageNet
    from datasets.oxford_pets import OxfordPets

    random.seed(1)
    train, val, test = DescribableTextures.read_and_split_data(str(whole / "dtd" / "images"))
    for part, items in zip(("train", "val", "test"), (train, val, test)):
        assert rows(items, whole) == READERS["DescribableTextures"][part]
    assert random.random() == READERS["DescribableTextures"]["next_random"]
    names = ImageNet.read_classnames(str(whole / "imagenet" / "classnames.txt"))
    assert names["n00000002"] == "great white shark"
    items = [Datum(f"{number}.jpg", number // 10) for number in range(40)]
    first, second = OxfordPets.split_trainval(items, p_val=0.3)
    assert (len(first), len(second)) == (28, 12)
    assert [len(part) for part in OxfordPets.subsample_classes(first, second, subsample="base")] == [14, 6]


# What is not the published data says so.


def test_missing_split_file_is_one_clear_error(whole, tmp_path, cfg):
    for name in SPLIT_FILES:
        folder = whole / CATALOG[name].folder
        before = sorted(folder.rglob("*"))
        with pytest.raises(FileNotFoundError) as caught:
            build(cfg, whole, name)
        message = str(caught.value)
        assert str(folder / CATALOG[name].split_file) in message
        assert f"python -m datasets.prepare {name} --root {whole}" in message
        assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", CATALOG)
def test_missing_folder_is_one_clear_error(tmp_path, cfg, name):
    root = tmp_path / "my data"
    root.mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        build(cfg, root, name)
    assert f'no folder "{CATALOG[name].folder}"' in str(caught.value)
    assert prepare_command(name, str(root)) in str(caught.value)
    assert f"--root '{root}'" in str(caught.value)
    (root / CATALOG[name].folder).mkdir()
    with pytest.raises(FileNotFoundError, match=f"datasets.prepare {name}"):
        build(cfg, root, name)
    assert [path.name for path in root.rglob("*")] == [CATALOG[name].folder]


def test_self_made_split_is_marked(whole, tmp_path, cfg, caplog):
    root, folder = take(whole, tmp_path, "Caltech101")
    path = make_split("Caltech101", root)
    assert path == folder / "split_made_Caltech101.json"
    assert not (folder / CATALOG["Caltech101"].split_file).exists()
    with caplog.at_level(logging.WARNING):
        dataset = build(cfg, root, "Caltech101")
    assert dataset.split_origin == "self-made"
    assert "not the published one" in caplog.text
    assert rows(dataset.train_x, root) == READERS["Caltech101"]["train"]
    # the published file goes before it
    content = json.loads(path.read_text())
    content["train"].reverse()
    (folder / CATALOG["Caltech101"].split_file).write_text(json.dumps(content))
    dataset = build(cfg, root, "Caltech101")
    assert rows(dataset.train_x, root) == READERS["Caltech101"]["train"][::-1]


def test_published_data_is_recognised_whatever_its_file_looks_like(whole, tmp_path, cfg, monkeypatch, caplog):
    root, folder = take(whole, tmp_path, "EuroSAT")
    split = folder / CATALOG["EuroSAT"].split_file
    make_split("EuroSAT", root).rename(split)
    reader = DATASET_REGISTRY.get("EuroSAT")
    dataset = build(cfg, root, "EuroSAT")
    assert dataset.split_origin == "unrecognised"
    assert "15 training images instead of 13500" in caplog.text
    assert "3 classes instead of 10" in caplog.text
    items = {part: getattr(dataset, part) for part in ("train_x", "val", "test")}
    info = replace(
        reader.info,
        train=15,
        val=6,
        test=9,
        classes=3,
        names_sha256=classnames_hash(dataset.classnames),
        picks_sha256=picks_hash(items["train_x"], items["val"], dataset.items_root),
    )
    monkeypatch.setattr(reader, "info", info)
    caplog.clear()
    content = json.loads(split.read_text())
    split.write_text(json.dumps(content))  # another layout of the same content
    assert build(cfg, root, "EuroSAT").split_origin == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    content["train"][0], content["train"][1] = content["train"][1], content["train"][0]
    split.write_text(json.dumps(content))
    assert build(cfg, root, "EuroSAT").split_origin == "unrecognised"
    assert "other items, or another order" in caplog.text
    content["train"] = [[p, label, name.upper()] for p, label, name in content["train"]]
    content["val"], content["test"] = ([[p, n, t.upper()] for p, n, t in content[k]] for k in ("val", "test"))
    split.write_text(json.dumps(content))
    build(cfg, root, "EuroSAT")
    assert "other class names" in caplog.text


def test_picks_hash_is_the_published_recipe():
    """The text that is hashed, written out."""
    import hashlib

    train = [Datum(f"/r/a/{i}.jpg", i % 2) for i in range(6)]
    val = [Datum(f"/r/b/{i}.jpg", 0) for i in range(3)]
    random.seed(1)
    picks = random.sample(train[0::2], 2) + random.sample(train[1::2], 2)
    text = "\n".join(item.impath[3:] for item in picks) + "\n--\n"
    text += "\n".join(item.impath[3:] for item in random.sample(val, 2))
    assert picks_hash(train, val, "/r", shots=2, seed=1) == hashlib.sha256(text.encode()).hexdigest()


def test_differences_of_incomplete_data():
    info = replace(CATALOG["ImageNetA"], classes=2, test=4)
    items = [Datum(f"/r/{i}.jpg", i % 2, classname="ab"[i % 2]) for i in range(4)]
    assert differences(info, items, [], items, "/r") == []
    assert differences(info, items[:3], [], items[:3], "/r") == ["3 test images instead of 4"]


# Damaged folders.


def damaged_split(cfg, whole, tmp_path, change):
    root, folder = take(whole, tmp_path, "OxfordPets")
    path = make_split("OxfordPets", root)
    content = json.loads(path.read_text())
    change(content, folder)
    (folder / CATALOG["OxfordPets"].split_file).write_text(json.dumps(content))
    return build(cfg, root, "OxfordPets")


def test_split_that_names_a_missing_image(whole, tmp_path, cfg):
    with pytest.raises(FileNotFoundError) as caught:
        damaged_split(cfg, whole, tmp_path, lambda c, f: (f / "images" / c["test"][0][0]).unlink())
    assert "OxfordPets: 1 image is missing:" in str(caught.value)
    assert "Abyssinian_201.jpg" in str(caught.value)
    assert "python -m datasets.prepare OxfordPets" in str(caught.value)


def test_split_with_a_gap_in_the_labels(whole, tmp_path, cfg):
    def change(content, folder):
        for part in content.values():
            part[:] = [row for row in part if row[1] != 1]

    with pytest.raises(ValueError, match=r"labels must be 0 to 2 without a gap, but no training item has label 1"):
        damaged_split(cfg, whole, tmp_path, change)


def test_split_with_a_label_beyond_all_memory(whole, tmp_path, cfg):
    def change(content, folder):
        content["train"][0][1] = 10**18

    with pytest.raises(ValueError, match=r"no training item has label 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$"):
        damaged_split(cfg, whole, tmp_path, change)


def test_split_with_two_names_for_a_label(whole, tmp_path, cfg):
    def change(content, folder):
        content["train"][0][2] = "lion"

    with pytest.raises(ValueError, match=r"label 0 has two names: 'lion' and 'abyssinian'"):
        damaged_split(cfg, whole, tmp_path, change)


@pytest.mark.parametrize("damage", [b"", b"MATLAB 5.0 MAT-file" + b"\0" * 200, b"<html>not found</html>" * 40, "cut"])
def test_damaged_mat_files(whole, tmp_path, damage):
    for name, file in (("OxfordFlowers", "imagelabels.mat"), ("StanfordCars", "devkit/cars_train_annos.mat")):
        root, folder = take(whole, tmp_path / name, name)
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2] if damage == "cut" else damage)
        with pytest.raises(ValueError, match=r"mat\" (is damaged or no MATLAB file|has no variable)"):
            make_split(name, root)
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match=rf'no annotation file ".*{file}"'):
            make_split(name, root)
        assert not (folder / CATALOG[name].made_split).exists()


def test_mat_files_with_other_content(whole, tmp_path):
    root, folder = take(whole, tmp_path, "StanfordCars")
    shutil.copy(folder / "devkit/cars_meta.mat", folder / "cars_test_annos_withlabels.mat")
    with pytest.raises(ValueError, match=r"withlabels\.mat\" has no variable 'annotations', found class_names"):
        make_split("StanfordCars", root)
    write_car_annotations(folder / "cars_test_annos_withlabels.mat", [1, 9])
    with pytest.raises(ValueError, match=r"gives 00002\.jpg the class 9, expected 1 to 3"):
        make_split("StanfordCars", root)


@pytest.mark.parametrize(
    ("name", "file", "line", "words"),
    [
        ("OxfordPets", "annotations/trainval.txt", "Abyssinian_100 1 1", "line 1 .*Abyssinian_100 1 1"),
        ("OxfordPets", "annotations/test.txt", "Abyssinian_100 0 1 1", "line 1 .*class from 1"),
        ("SUN397", "Training_01.txt", "/z/zoo/1.jpg", "line 1 .*folder of ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt", "one ApplyEyeMakeup", "number from 1"),
        ("UCF101", "ucfTrainTestlist/testlist01.txt", "Sleeping/v_1.avi", "line 1 .*classInd.txt"),
        ("FGVCAircraft", "images_variant_val.txt", "0000004 Cessna", "line 1 .*variants.txt"),
        ("ImageNet", "classnames.txt", "n00000001", "'n00000001' has no class name"),
        ("ImageNet", "classnames.txt", "n1 a\nn1 b", "'n1' stands there twice"),
        ("ImageNet", "classnames.txt", "n00000001 tench", "not a class folder.*'n00000002'"),
        ("ImageNetSketch", "classnames.txt", "n00000002 a", "not a class folder.*'n00000004'"),
        ("OxfordFlowers", "cat_to_name.json", '{"1": "a"}', "no name for class 3"),
        ("OxfordFlowers", "cat_to_name.json", "{", "not a JSON file"),
        ("SUN397", "ClassName.txt", "\n", "is empty"),
    ],
)
def test_damaged_annotations(whole, tmp_path, cfg, name, file, line, words):
    root, folder = take(whole, tmp_path, name)
    (folder / file).write_text(line)
    with pytest.raises(ValueError, match=words):
        build(cfg, root, name) if not CATALOG[name].split_file else make_split(name, root)


def test_annotations_that_are_no_text(whole, tmp_path):
    root, folder = take(whole, tmp_path, "SUN397")
    (folder / "ClassName.txt").write_bytes(b"\xff\xfe\x00abc\x80")
    with pytest.raises(ValueError, match="not a text file"):
        make_split("SUN397", root)


def test_imagenet_folders_that_do_not_fit(whole, tmp_path, cfg):
    root, folder = take(whole, tmp_path, "ImageNet")
    shutil.rmtree(folder / "images" / "val" / "n00000003")
    with pytest.raises(ValueError, match="must have the same class folders, but 1 are in one of them only: n00000003"):
        build(cfg, root, "ImageNet")
    (folder / "images" / "val" / "n00000003").mkdir()
    with pytest.raises(ValueError, match=r'class folder ".*val/n00000003" is empty'):
        build(cfg, root, "ImageNet")
    shutil.rmtree(folder / "images" / "val")
    with pytest.raises(FileNotFoundError, match=r'no folder ".*images/val".*datasets\.prepare ImageNet'):
        build(cfg, root, "ImageNet")
    write_image(folder / "images" / "val" / "ILSVRC2012_val_00000001.JPEG")  # not arranged in class folders
    with pytest.raises(FileNotFoundError, match=r'images/val" has no class folders'):
        build(cfg, root, "ImageNet")


def test_class_too_small_to_split(whole, tmp_path):
    root, folder = take(whole, tmp_path, "DescribableTextures")
    for number in range(3, 13):
        (folder / "images" / "banded" / f"image_{number:04d}.jpg").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="class 'banded' has 2 images, too few"):
        make_split("DescribableTextures", root)
    root, folder = take(whole, tmp_path / "pets", "OxfordPets")
    write_text(folder / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1\nAbyssinian_2 1 1 1\n")
    with pytest.raises(ValueError, match="class 'abyssinian' has 2 images, too few for a validation part"):
        make_split("OxfordPets", root)


def test_splits_that_cannot_be_made(whole, tmp_path):
    for name in ("FGVCAircraft", "ImageNet", "ImageNetR"):
        with pytest.raises(ValueError, match=f"{name} comes with its lists"):
            make_split(name, whole)
    with pytest.raises(FileNotFoundError, match=r"no folder .*food-101.*datasets\.prepare Food101"):
        make_split("Food101", tmp_path)


def test_class_names_keep_their_spaces(tmp_path):
    write_text(tmp_path / "classnames.txt", "n2 great white shark\n\nn1 tench \n")
    assert read_classnames(tmp_path / "classnames.txt") == {"n2": "great white shark", "n1": "tench"}


def test_data_folder_is_only_read(whole, tmp_path, cfg):
    """Neither caches nor folders of picks appear, and old caches of other programs are not read."""
    root, folder = take(whole, tmp_path, "OxfordPets")
    make_split("OxfordPets", root).rename(folder / CATALOG["OxfordPets"].split_file)
    write_text(folder / "split_fewshot" / "shot_2-seed_1.pkl", "not a pickle")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    folder.chmod(0o555)
    try:
        build(cfg, root, "OxfordPets", NUM_SHOTS=2)
    finally:
        folder.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert (Path(cfg.DATASET.CACHE_DIR) / "OxfordPets" / "shot_2-seed_1.json").is_file()
