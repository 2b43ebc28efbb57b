"""Few-shot protocol: picks, halves of classes, split files, caches."""

import itertools
import json
import logging
import os
import random
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import set_random_seed
from datasets.few_shot import FewShotDataset, cache_folder, draw_shots, read_split, save_split, subsample_classes

GOLDEN = Path(__file__).parents[1] / "golden"
PICKS = json.loads((GOLDEN / "fewshot_picks.json").read_text())["picks"]
HALVES = json.loads((GOLDEN / "base_new.json").read_text())


class Letters(FewShotDataset):
    """Seven classes of the golden picks."""

    dataset_dir = "letters"
    image_dir = "images"
    split_file = "split.json"
    source = "https://example.org/letters"


def golden_lists(order):
    """The lists of fewshot_picks.json as rows [name, label, class name]."""
    train = {(c, i): [f"f{c}_{i}.jpg", c, f"c{c}"] for c in range(7) for i in range(9 + 2 * c)}
    val = {(c, i): [f"v{c}_{i}.jpg", c, f"c{c}"] for c in range(7) for i in range(2 + c)}
    if order == "interleaved":
        keys = [(c, i) for i in range(21) for c in (3, 0, 6, 1, 5, 2, 4)]
        return [[rows[key] for key in keys if key in rows] for rows in (train, val)]
    return [[rows[key] for key in sorted(rows)] for rows in (train, val)]


def make(root, order="grouped", train=None):
    """Write images and a split file below `root`."""
    rows, val = golden_lists(order)
    test = [[f"t{c}.jpg", c, f"c{c}"] for c in range(7)]
    content = {"train": rows if train is None else train, "val": val, "test": test}
    folder = root / "letters"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row in [*rows, *val, *test]:
        (folder / "images" / row[0]).touch()
    (folder / "split.json").write_text(json.dumps(content))
    return folder


def names(items):
    return [os.path.basename(item.impath) for item in items]


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(tmp_path / "data")
    cfg.DATASET.CACHE_DIR = str(tmp_path / "cache")
    cfg.SEED = 1
    return cfg


@pytest.fixture
def root(tmp_path):
    make(tmp_path / "data")
    return tmp_path / "data"


def settings():
    return [(order, key) for order, runs in PICKS.items() for key in runs]


@pytest.mark.parametrize(("order", "key"), settings())
def test_golden_picks_from_the_seed_alone(tmp_path, cfg, order, key):
    make(tmp_path / "data", order)
    shots, seed = (int(part.split("_")[1]) for part in key.split("-"))
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    random.seed(12345)
    before = random.getstate()
    dataset = Letters(cfg)
    assert random.getstate() == before
    assert names(dataset.train_x) == PICKS[order][key]["train"]
    assert names(dataset.val) == PICKS[order][key]["val"]
    assert names(dataset.test) == [f"t{c}.jpg" for c in range(7)]


@pytest.mark.parametrize(("order", "key"), settings())
def test_golden_picks_from_the_global_generator(tmp_path, order, key):
    """The picks of the original, with as many random numbers used."""
    shots, seed = (int(part.split("_")[1]) for part in key.split("-"))
    train, val = ([Datum(path, label, classname=name) for path, label, name in rows] for rows in golden_lists(order))
    (tmp_path / "x.jpg").touch()
    dataset = DatasetBase(train_x=[Datum(str(tmp_path / "x.jpg"))])
    set_random_seed(seed)
    assert names(dataset.generate_fewshot_dataset(train, num_shots=shots)) == PICKS[order][key]["train"]
    assert names(dataset.generate_fewshot_dataset(val, num_shots=min(shots, 4))) == PICKS[order][key]["val"]
    assert random.random() == PICKS[order][key]["next_random"]


@pytest.mark.parametrize("case", HALVES["small"], ids=lambda case: str(case["labels_in_order_of_appearance"]))
def test_golden_halves(case):
    items = [Datum(f"{i}.jpg", label, 3, f"c{label}") for i, label in enumerate(case["labels_in_order_of_appearance"])]
    for half in ("base", "new"):
        (kept,) = subsample_classes(items, subsample=half)
        number = {int(old): new for old, new in case[half].items()}
        expected = [item for item in items if item.label in number]
        assert [item.impath for item in kept] == [item.impath for item in expected]
        assert [item.label for item in kept] == [number[item.label] for item in expected]
        assert [item.classname for item in kept] == [item.classname for item in expected]
        assert {item.domain for item in kept} <= {0}
    assert subsample_classes(items) == [items]


@pytest.mark.parametrize("case", HALVES["large"], ids=lambda case: case["dataset"])
def test_golden_sizes_of_halves(case):
    items = [Datum(f"{label}.jpg", label, classname=f"c{label}") for label in range(case["n"])]
    (base,), (new,) = (subsample_classes(items, subsample=half) for half in ("base", "new"))
    assert (len(base), len(new)) == (case["n_base"], case["n_new"])
    assert new[0].impath == f"{case['first_new_old_label']}.jpg"


@pytest.mark.parametrize("half", ["all", "base", "new"])
def test_golden_halves_of_several_lists(half):
    example = HALVES["multi_list_example"]
    lists = [
        [Datum(path, label, classname=f"c{label}") for path, label in example[split]] for split in ("train", "test")
    ]
    for split, items in zip(("train", "test"), subsample_classes(*lists, subsample=half)):
        assert [[item.impath, item.label, item.classname] for item in items] == example["out"][half][split]


@pytest.mark.parametrize("count", [6, 7, 8, 11])
@pytest.mark.parametrize("sets", [1, 2, 3, 5])
def test_sets_of_classes(count, sets):
    """Together they are all classes in order, their sizes differ by one at most, and joint sets are their union."""
    items = [Datum(f"{label}.jpg", label, classname=f"c{label}") for label in range(count)]
    parts = [subsample_classes(items, subsample=f"{k}/{sets}")[0] for k in range(1, sets + 1)]
    names = [[item.classname for item in part] for part in parts]
    assert [*itertools.chain(*names)] == [f"c{label}" for label in range(count)]
    assert max(map(len, names)) - min(map(len, names)) <= 1
    assert all([item.label for item in part] == list(range(len(part))) for part in parts)
    for k in range(1, sets + 1):
        (joint,) = subsample_classes(items, subsample=f"1-{k}/{sets}")
        assert [item.classname for item in joint] == [*itertools.chain(*names[:k])]


@pytest.mark.parametrize("subsample", ["old", "0/2", "3/2", "2-1/3", "1/0", "1-/2"])
def test_other_sets_are_refused(subsample):
    with pytest.raises(ValueError, match=f"'{subsample}', expected all, base, new, or sets"):
        subsample_classes([], subsample=subsample)


def test_more_sets_than_classes_are_refused():
    with pytest.raises(ValueError, match="3 sets of 2 classes"):
        subsample_classes([Datum("a.jpg", 0), Datum("b.jpg", 1)], subsample="1/3")


def test_halves_do_not_change_the_picks(cfg, root):
    cfg.DATASET.NUM_SHOTS = 4
    whole = Letters(cfg)
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    base = Letters(cfg)
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    new = Letters(cfg)
    assert names(base.train_x) + names(new.train_x) == names(whole.train_x)
    assert names(base.val) + names(new.val) == names(whole.val)
    assert (base.classnames, new.classnames) == (["c0", "c1", "c2", "c3"], ["c4", "c5", "c6"])
    assert sorted({item.label for item in new.train_x}) == [0, 1, 2]


def test_all_shots(cfg, root):
    dataset = Letters(cfg)
    assert len(dataset.train_x) == sum(9 + 2 * c for c in range(7))
    assert dataset.items_root == str(root / "letters" / "images")
    assert dataset.train_x[0].impath == str(root / "letters" / "images" / "f0_0.jpg")
    assert not os.path.exists(cfg.DATASET.CACHE_DIR)


def test_cache_is_used_and_holds_relative_paths(cfg, root, caplog):
    cfg.DATASET.NUM_SHOTS = 2
    before = sorted(path for path in root.rglob("*"))
    with caplog.at_level(logging.INFO):
        first = Letters(cfg)
        again = Letters(cfg)
    assert sorted(path for path in root.rglob("*")) == before
    assert first.train_x == again.train_x
    assert first.val == again.val
    path = Path(cfg.DATASET.CACHE_DIR) / "Letters" / "shot_2-seed_1.json"
    assert f"Saving preprocessed few-shot data to {path}" in caplog.text
    assert f"Loading preprocessed few-shot data from {path}" in caplog.text
    content = json.loads(path.read_text())
    assert content["train"][0] == ["f0_2.jpg", 0, "c0"]
    # what is kept is what is used: exchange two picks in the file
    content["train"][:2] = content["train"][1::-1]
    path.write_text(json.dumps(content))
    assert names(Letters(cfg).train_x)[:2] == ["f0_1.jpg", "f0_2.jpg"]


def test_cache_works_for_the_data_in_another_place(cfg, root, tmp_path):
    cfg.DATASET.NUM_SHOTS = 2
    Letters(cfg)
    (root).rename(tmp_path / "moved")
    cfg.DATASET.ROOT = str(tmp_path / "moved")
    path = Path(cfg.DATASET.CACHE_DIR) / "Letters" / "shot_2-seed_1.json"
    stamp = path.stat().st_mtime_ns
    assert Letters(cfg).train_x[0].impath == str(tmp_path / "moved" / "letters" / "images" / "f0_2.jpg")
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["order", "label", "val"])
def test_cache_of_other_data_is_never_used(cfg, root, change, caplog):
    cfg.DATASET.NUM_SHOTS = 2
    Letters(cfg)
    path = Path(cfg.DATASET.CACHE_DIR) / "Letters" / "shot_2-seed_1.json"
    stale = path.read_text()
    split = root / "letters" / "split.json"
    content = json.loads(split.read_text())
    if change == "order":
        content["train"].reverse()
    elif change == "label":
        for row in content["train"] + content["val"] + content["test"]:
            row[1], row[2] = 6 - row[1], f"d{6 - row[1]}"
    else:
        content["val"].reverse()
    split.write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        fresh = Letters(cfg)
    assert "are of other data and are drawn anew" in caplog.text
    assert path.read_text() != stale
    rng = random.Random(1)
    items = [Datum(str(root / "letters" / "images" / p), c, classname=n) for p, c, n in content["train"]]
    assert fresh.train_x == fresh.generate_fewshot_dataset(items, num_shots=2, rng=rng)


@pytest.mark.parametrize("damage", ["{", "[]", '{"train": 3}', "items", "entry"])
def test_damaged_cache_is_drawn_anew(cfg, root, damage, caplog):
    cfg.DATASET.NUM_SHOTS = 2
    expected = Letters(cfg).train_x
    path = Path(cfg.DATASET.CACHE_DIR) / "Letters" / "shot_2-seed_1.json"
    whole = path.read_text()
    content = json.loads(whole)
    if damage == "items":
        content["train"][0][0] = "t0.jpg"  # a test image
    elif damage == "entry":
        content["train"][0] = ["f0_2.jpg"]
    path.write_text(damage if damage[0] in "{[" else json.dumps(content))
    with caplog.at_level(logging.INFO):
        assert Letters(cfg).train_x == expected
    assert "drawn anew" in caplog.text
    assert path.read_text() == whole


def test_no_seed_no_cache(cfg, root):
    cfg.DATASET.NUM_SHOTS, cfg.SEED = 1, -1
    random.seed(2)
    assert names(Letters(cfg).train_x) == PICKS["grouped"]["shots_1-seed_2"]["train"]
    random.seed(3)
    assert names(Letters(cfg).train_x) == PICKS["grouped"]["shots_1-seed_3"]["train"]
    assert not os.path.exists(cfg.DATASET.CACHE_DIR)


def test_seed_zero_is_a_seed(cfg, root):
    cfg.DATASET.NUM_SHOTS, cfg.SEED = 1, 0
    random.seed(5)
    assert Letters(cfg).train_x == Letters(cfg).train_x
    assert (Path(cfg.DATASET.CACHE_DIR) / "Letters" / "shot_1-seed_0.json").is_file()


def test_cache_that_cannot_be_written_is_a_warning(cfg, root, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cfg.DATASET.CACHE_DIR = str(tmp_path / "file")
    cfg.DATASET.NUM_SHOTS = 1
    assert len(Letters(cfg).train_x) == 7
    assert "picks are not kept" in caplog.text
    assert "DATASET.CACHE_DIR" in caplog.text


def test_default_cache_is_in_the_users_cache_folder(cfg, monkeypatch, tmp_path):
    cfg.DATASET.CACHE_DIR = ""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(cfg) == tmp_path / ".cache" / "align-prompt" / "few_shot"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_folder(cfg) == tmp_path / "other" / "align-prompt" / "few_shot"


def test_validation_may_stay_whole(cfg, root):
    cfg.DATASET.NUM_SHOTS = 1
    dataset = Letters(cfg)
    cfg.DATASET.CACHE_DIR += "2"
    train, val, _ = read_split(root / "letters" / "split.json", dataset.items_root)
    for _ in range(2):
        picks, whole = draw_shots(cfg, dataset, train, val, sample_val=False)
        assert picks == dataset.train_x
        assert whole is val


def test_split_files_round_trip(root, tmp_path):
    folder = root / "letters" / "images"
    splits = read_split(root / "letters" / "split.json", folder)
    save_split(*splits, tmp_path / "copy.json", folder)
    assert read_split(tmp_path / "copy.json", folder) == splits
    text = (tmp_path / "copy.json").read_text()
    assert json.loads(text) == json.loads((root / "letters" / "split.json").read_text())
    assert text.startswith('{\n    "train": [\n        [\n            "f0_0.jpg",\n            0,\n')


def test_missing_split_is_not_invented(cfg, root):
    (root / "letters" / "split.json").unlink()
    before = sorted(root.rglob("*"))
    with pytest.raises(FileNotFoundError) as caught:
        Letters(cfg)
    assert str(root / "letters" / "split.json") in str(caught.value)
    assert "https://example.org/letters" in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_missing_root_and_folder(cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data root .*data.* is not there.*letters.*--root.*example\.org"):
        Letters(cfg)
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match=r'no folder "letters" in the data root.*--root.*example\.org'):
        Letters(cfg)
    assert not list((tmp_path / "data").iterdir())
    cfg.DATASET.ROOT = ""
    with pytest.raises(FileNotFoundError, match=r"DATASET\.ROOT is not set.*letters.*--root"):
        Letters(cfg)


def test_home_in_the_root(cfg, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    cfg.DATASET.ROOT = "~/data"
    assert Letters(cfg).items_root == str(root / "letters" / "images")


def test_missing_image_is_found_when_the_data_set_is_built(cfg, root):
    cfg.DATASET.NUM_SHOTS = 1
    for name in ("f0_0.jpg", "f3_4.jpg"):
        (root / "letters" / "images" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)2 images are missing.*f0_0\.jpg.*f3_4\.jpg"):
        Letters(cfg)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["a.jpg", 0], r"entry 1 in train of .* is \['a.jpg', 0\]"),
        ("a.jpg", "entry 1"),
        ([3, 0, "c0"], "entry 1"),
        (["a.jpg", "x", "c0"], "label 'x'"),
        (["a.jpg", 0.5, "c0"], r"label 0\.5"),
        (["a.jpg", True, "c0"], "label True"),
        (["a.jpg", -1, "c0"], "label -1"),
        (["../../secret", 0, "c0"], r"path '\.\./\.\./secret'"),
        (["/etc/passwd", 0, "c0"], "path '/etc/passwd'"),
        (["", 0, "c0"], "path ''"),
    ],
)
def test_entries_that_are_refused(tmp_path, row, words):
    content = {"train": [["a.jpg", "2", "c2"], row], "val": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as caught:
        read_split(tmp_path / "split.json", tmp_path)
    assert "split.json" in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "3", '{"train": [], "test": []}', '{"train": 3, "val": [], "test": []}', "{"]
)
def test_files_that_are_no_split(tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match=r"split\.json"):
        read_split(tmp_path / "split.json", tmp_path)


def test_labels_given_as_text_are_numbers(tmp_path):
    (tmp_path / "split.json").write_text('{"train": [["a/b.jpg", "2", "c2"]], "val": [], "test": []}')
    train, val, test = read_split(tmp_path / "split.json", tmp_path)
    assert (train[0].label, train[0].impath, val, test) == (2, str(tmp_path / "a" / "b.jpg"), [], [])


def released(root, shots, seed, train, val, folder="/their/disk/letters/images/"):
    """Lists as 2SFS releases them, with the paths of their machine."""
    place = root / "letters" / "split_fewshot"
    place.mkdir(exist_ok=True)
    for part, rows in (("train", train), ("val", val)):
        lines = [
            json.dumps({"_impath": folder + name, "_label": label, "_domain": 0, "_classname": classname})
            for name, label, classname in rows
        ]
        (place / f"shot_{shots}-seed_{seed}_{part}.jsonl").write_text("\n".join(lines) + "\n")


def released_config(root, shots=2, seed=3):
    cfg = get_cfg_default()
    pairs = ["DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", shots, "SEED", seed, "DATASET.PICKS", "2sfs"]
    cfg.merge_from_list(pairs)
    return cfg


def test_released_picks_are_taken_as_they_are(tmp_path):
    make(tmp_path)
    train, val = golden_lists("grouped")
    wanted = (
        [row for row in train if row[0].endswith(("_1.jpg", "_4.jpg"))][::-1],
        [row for row in val if "_0" in row[0]],
    )
    released(tmp_path, 2, 3, *wanted)
    found = Letters(released_config(tmp_path))
    for items, rows in zip((found.train_x, found.val), wanted):
        assert [(Path(item.impath).name, item.label, item.classname) for item in items] == [tuple(row) for row in rows]
        assert all(Path(item.impath).is_file() for item in items)
    assert len(found.test) == 7


def test_released_picks_that_do_not_fit_are_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"jsonl_2shot\.tar from https://drive"):
        Letters(released_config(tmp_path))
    for row in (["f1_1.jpg", 2, "c2"], ["f9_9.jpg", 1, "c1"], ["f1_1.jpg", 1, "other"]):
        released(tmp_path, 2, 3, [row], [])
        with pytest.raises(ValueError, match="which the official split does not have"):
            Letters(released_config(tmp_path))
    (tmp_path / "letters" / "split_fewshot" / "shot_2-seed_3_train.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match="expected _impath"):
        Letters(released_config(tmp_path))
