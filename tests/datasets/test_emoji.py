"""Readers of the embedded data sets: splits, styles, shots, base and new classes, and the pictures they write."""

import hashlib
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.config import get_cfg_default
from datasets.embedded import (
    STYLES,
    UNSEEN_STYLES,
    benchmark,
    concept_ids,
    digits,
    emoji,
    load_style,
    pictures,
    style_concepts,
)
from datasets.few_shot import subsample_classes

FINE = {
    "EmojiAnimals": 109,
    "EmojiFood": 124,
    "EmojiObjects": 351,
    "EmojiTravel": 186,
    "EmojiFaces": 119,
    "EmojiPeople": 67,
    "EmojiClocks": 24,
}


@pytest.fixture
def config(pictures_root, tmp_path):
    def make(name="EmojiGroups", **keys):
        cfg = get_cfg_default()
        cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.CACHE_DIR = name, pictures_root, str(tmp_path / "cache")
        cfg.SEED = 1
        for key, value in keys.items():
            setattr(cfg.DATASET, key, value)
        return cfg

    return make


def make(cfg):
    module = digits if cfg.DATASET.NAME == "Digits" else emoji
    return getattr(module, cfg.DATASET.NAME)(cfg)


def code(item) -> str:
    return Path(item.impath).stem.rsplit("_", 1)[0]


def style(item) -> str:
    return Path(item.impath).parent.name


def test_groups_split_by_concept_in_every_unseen_style(config):
    data = make(config())
    assert data.num_classes == 69
    assert data.classnames == sorted(benchmark()["groups"])
    split = benchmark()["split"]
    for name, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert {split[code(item)] for item in items} == {name}
        assert {style(item) for item in items} == set(UNSEEN_STYLES)
        in_split = {concept_ids()[key] for key, part in split.items() if part == name}
        expected = sum(len(in_split & set(style_concepts(each))) for each in UNSEEN_STYLES)
        assert len({item.impath for item in items}) == expected


def test_items_carry_label_domain_and_file(config):
    data = make(config())
    members = benchmark()["groups"]
    for item in (*data.train_x, *data.val, *data.test):
        assert code(item) in members[item.classname]
        assert data.classnames[item.label] == item.classname
        assert STYLES[item.domain] == style(item)
    assert data.template == "a picture of a {}."
    assert all(item.impath.startswith(data.items_root) for item in data.test)


def test_domains_choose_the_styles(config):
    data = make(config(SOURCE_DOMAINS=("openmoji",), TARGET_DOMAINS=("streamline", "fluent-hc")))
    assert {style(item) for item in (*data.train_x, *data.val)} == {"openmoji"}
    assert {style(item) for item in data.test} == {"streamline", "fluent-hc"}
    with pytest.raises(ValueError, match="apple"):
        make(config(TARGET_DOMAINS=("apple",)))


def test_only_the_styles_that_are_needed_are_written(config, tmp_path):
    cfg = config(SOURCE_DOMAINS=("openmoji-black",), TARGET_DOMAINS=("streamline",))
    cfg.DATASET.ROOT = str(tmp_path / "new" / "data")
    make(cfg)
    folders = {path.name for path in (tmp_path / "new/data/emoji").iterdir() if path.is_dir()}
    assert folders == {"openmoji-black", "streamline"}


def test_classes_without_a_training_picture_are_left_out(config, caplog):
    data = make(config(SOURCE_DOMAINS=("streamline",), TARGET_DOMAINS=("openmoji",)))
    drawn = set(style_concepts("streamline"))
    split = benchmark()["split"]
    expected = [
        name
        for name, codes in sorted(benchmark()["groups"].items())
        if any(concept_ids()[each] in drawn and split[each] == "train" for each in codes)
    ]
    assert data.classnames == expected
    assert len(expected) < 69
    assert f"{69 - len(expected)} of 69 classes have no training picture" in caplog.text
    assert {item.classname for item in data.test} <= set(expected)


@pytest.mark.parametrize("name", FINE)
def test_fine_classes_split_by_style(config, name):
    data = make(config(name))
    assert data.num_classes == FINE[name]
    assert {style(item) for item in data.train_x} <= {"openmoji", "fluent-flat", "streamline"}
    assert {style(item) for item in data.val} == {"openmoji-black"}
    assert {style(item) for item in data.test} == {"fluent-3d", "fluent-hc"}
    assert {item.label for item in data.val} == set(range(FINE[name]))


def test_no_validation_on_a_style_of_training_or_test(config):
    assert make(config("EmojiClocks", TARGET_DOMAINS=("openmoji-black",))).val == []
    assert make(config("EmojiClocks", SOURCE_DOMAINS=("openmoji-black",))).val == []


def test_shots_are_different_drawings(config, caplog):
    data = make(config(NUM_SHOTS=16))
    full = Counter(item.label for item in make(config()).train_x)
    counts = Counter(item.label for item in data.train_x)
    assert counts == {label: min(16, count) for label, count in full.items()}
    assert sum(count < 16 for count in full.values()) == 1
    assert "1 of 69 classes have fewer than 16 training pictures" in caplog.text
    assert len({item.impath for item in data.train_x}) == len(data.train_x)
    assert max(Counter(item.label for item in data.val).values()) <= 4


def test_shots_follow_the_seed(config):
    def picks(seed):
        cfg = config(NUM_SHOTS=2)
        cfg.SEED = seed
        return [item.impath for item in make(cfg).train_x]

    assert picks(1) == picks(1)
    assert picks(1) != picks(2)


def test_base_and_new_classes(config):
    whole = make(config("EmojiFood"))
    base = make(config("EmojiFood", SUBSAMPLE_CLASSES="base"))
    new = make(config("EmojiFood", SUBSAMPLE_CLASSES="new"))
    assert base.classnames + new.classnames == whole.classnames
    assert (base.num_classes, new.num_classes) == (62, 62)
    expected = subsample_classes(whole.train_x, whole.test, subsample="new")[1]
    assert [item.impath for item in new.test] == [item.impath for item in expected]
    assert make(config(SUBSAMPLE_CLASSES="base")).num_classes == 35


def test_style_items_list_one_style(config):
    data = make(config("EmojiClocks"))
    items = data.style_items("noto")
    assert {style(item) for item in items} == {"noto"}
    assert sorted({item.label for item in items}) == list(range(24))
    groups = make(config())
    test = groups.style_items("fluent-3d", groups.codes("test"))
    assert test == [item for item in groups.test if style(item) == "fluent-3d"]


@pytest.mark.parametrize("name", ["EmojiGroups", "Digits"])
def test_missing_and_unwritable_root(config, tmp_path, name):
    cfg = config(name)
    cfg.DATASET.ROOT = ""
    with pytest.raises(FileNotFoundError, match="--root"):
        make(cfg)
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    cfg.DATASET.ROOT = str(blocker)
    with pytest.raises(OSError, match=r"cannot write pictures to .* set DATASET\.ROOT"):
        make(cfg)


def drawing(style_name: str, key: str) -> np.ndarray:
    ids, images = load_style(style_name, premultiplied=True)
    return images[ids.tolist().index(concept_ids()[key])]


# Pixels must not change once results are published: raise pictures.RECIPE if they do on purpose.
@pytest.mark.parametrize(
    ("style_name", "key", "variant", "expected"),
    [
        ("openmoji", "1F600", 0, "6ca8823146a956c2"),
        ("streamline", "1F43A", 0, "6b595bd1bbf0f077"),
        ("fluent-3d", "1F34E", 0, "598bf11320c27dd3"),
        ("fluent-3d", "1F34E", 1, "4e72e93f41ae57c1"),
    ],
)
def test_pictures_never_change(style_name, key, variant, expected):
    picture = pictures.composite(drawing(style_name, key), key, style_name, variant)
    assert hashlib.sha256(picture.tobytes()).hexdigest()[:16] == expected


def test_files_hold_the_composites(config):
    data = make(config())
    for item in data.test[:: len(data.test) // 5]:
        with Image.open(item.impath) as image:
            assert image.mode == "RGB"
            found = np.array(image)
        assert np.array_equal(found, pictures.composite(drawing(style(item), code(item)), code(item), style(item)))


def test_a_picture_shows_the_drawing_on_light_paper():
    key = "1F34E"  # red apple
    picture = pictures.composite(drawing("openmoji", key), key, "openmoji").astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 120)
    assert 0.1 < red.mean() < 0.6
    ys, xs = np.nonzero(red)
    assert abs(ys.mean() - 32) < 8
    assert abs(xs.mean() - 32) < 8
    empty = pictures.composite(np.zeros((64, 64, 4), dtype=np.uint8), key, "openmoji")
    assert empty.min() >= 160
    outside = ~red & (np.abs(picture - empty).max(-1) == 0)
    assert outside.mean() > 0.2


def test_a_style_is_written_again_when_incomplete_or_from_other_artwork(tmp_path):
    pictures.write_style(tmp_path, "streamline")
    folder = tmp_path / "streamline"
    files = sorted(folder.glob("*.png"))
    assert len(files) == 556
    before = files[0].stat().st_mtime_ns
    pictures.write_style(tmp_path, "streamline")
    assert files[0].stat().st_mtime_ns == before
    files[0].unlink()
    (folder / "COMPLETE.json").unlink()
    pictures.write_style(tmp_path, "streamline")
    assert files[0].is_file()
    marker = json.loads((folder / "COMPLETE.json").read_text())
    (folder / "COMPLETE.json").write_text(json.dumps({**marker, "recipe": -1}))
    files[0].write_bytes(b"old")
    pictures.write_style(tmp_path, "streamline")
    assert files[0].read_bytes() != b"old"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["streamline"]


def test_two_writers_at_once(tmp_path):
    problems = []

    def write():
        try:
            pictures.write_style(tmp_path, "streamline")
        except OSError as error:
            problems.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not problems
    assert len(list((tmp_path / "streamline").glob("*.png"))) == 556
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["streamline"]


def test_digits(config):
    data = make(config("Digits"))
    assert data.classnames == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert (len(data.train_x), len(data.val), len(data.test)) == (898, 360, 539)
    paths = [item.impath for item in (*data.train_x, *data.val, *data.test)]
    assert len(set(paths)) == 1797
    for label, count in Counter(item.label for item in data.train_x).items():
        total = count + sum(item.label == label for item in (*data.val, *data.test))
        assert abs(count / total - 0.5) < 0.01
    with Image.open(data.test[0].impath) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert min(image.convert("L").getdata()) < 60
    few = make(config("Digits", NUM_SHOTS=4))
    assert Counter(item.label for item in few.train_x) == dict.fromkeys(range(10), 4)
    assert make(config("Digits", SUBSAMPLE_CLASSES="new")).classnames == ["five", "six", "seven", "eight", "nine"]
