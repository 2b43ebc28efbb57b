"""Images with captions: folders, tables, shards, and training on them."""

import io
import json
import logging
import os
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets.image_text.pairs import folder_pairs, table_pairs
from datasets.image_text.shards import Damaged, ShardLoader, count_pairs, decode, find_shards, read_shard


def picture(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 2 * shade % 256, 7)).save(content, "PNG")
    return content.getvalue()


def write_images(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n:03d}.png").write_bytes(picture(n))


def write_shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return str(path)


def pair_members(numbers):
    for n in numbers:
        yield f"{n:05d}.png", picture(n)
        yield f"{n:05d}.txt", f"picture {n}".encode()
        yield f"{n:05d}.json", b"{}"


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED = False, 1
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "image_text", str(tmp_path)
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 0, 4
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (8, 8), ("normalize",)
    cfg.TEST.NO_TEST = True
    return cfg


def loader_of(cfg):
    return build_dataset(cfg).train_loader(cfg, torch.Generator())


def texts(loader):
    return [text for batch in loader for text in batch["text"]]


# folders and tables


def test_a_folder_of_images_with_text_files(tmp_path, caplog):
    write_images(tmp_path / "a", 3)
    (tmp_path / "a" / "000.txt").write_text("one\n\n  two  \n")
    (tmp_path / "a" / "002.txt").write_text("three")
    found = folder_pairs(tmp_path)
    assert [(pair.path, pair.captions) for pair in found] == [
        (str(tmp_path / "a" / "000.png"), ("one", "two")),
        (str(tmp_path / "a" / "002.png"), ("three",)),
    ]
    assert "1 of 3 images have no caption" in caplog.text
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="0 images but none with a text file"):
        folder_pairs(tmp_path / "bare")


def test_text_files_in_capitals_and_links_that_lead_back(tmp_path):
    write_images(tmp_path / "a", 2)
    (tmp_path / "a" / "000.TXT").write_text("one")
    (tmp_path / "a" / "001.TXT").write_text("old")
    (tmp_path / "a" / "001.txt").write_text("two")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [pair.captions for pair in folder_pairs(tmp_path)] == [("one",), ("two",)]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write_images(tmp_path / "a", 1)
    (tmp_path / "a" / "000.txt").write_text("one")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def scandir(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="closed"):
        folder_pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.tsv", "title\tfilepath\nred\timg/000.png\nblue, dark\timg/001.png\ngreen\timg/000.png\n", {}),
        ("a.csv", 'path,caption\nimg/000.png,red\nimg/001.png,"blue, dark"\nimg/000.png,green\n', {}),
        ("b.csv", "p|t\nimg/000.png|red\nimg/001.png|blue, dark\nimg/000.png|green\n", {"image": "p", "text": "t"}),
    ],
)
def test_a_table(tmp_path, name, content, options):
    write_images(tmp_path / "img", 2)
    (tmp_path / name).write_text(content)
    found = table_pairs(tmp_path / name, **options)
    assert [(pair.path[-7:], pair.captions) for pair in found] == [
        ("000.png", ("red", "green")),
        ("001.png", ("blue, dark",)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filepath,title\n", "has no rows"),
        ("filepath,comments\n000.png,a\n", "no column 'title' or .* found filepath, comments; set DATASET.PAIRS.TEXT"),
        ("filepath,title\n000.png,\n", "line 2 of .* has no caption"),
        ("filepath,title\n000.png\n", "line 2 of .* does not have the 2 fields"),
        ("filepath,title\n000.png,a\nx.png,b\n", "1 of 2 images .* are missing"),
    ],
)
def test_a_table_that_is_not_usable(tmp_path, content, message):
    write_images(tmp_path, 1)
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        table_pairs(tmp_path / "a.csv")


def test_an_epoch_of_a_folder_shows_every_image_once_with_one_of_its_captions(tmp_path, cfg):
    write_images(tmp_path, 10)
    for n in range(10):
        (tmp_path / f"{n:03d}.txt").write_text(f"{n} a\n{n} b\n")
    loader = loader_of(cfg)
    (first, second, *_) = epochs = [texts(loader) for _ in range(6)]
    assert all(len(epoch) == 8 and len({text[0] for text in epoch}) == 8 for epoch in epochs)  # two batches of 4
    assert first != second
    assert len({text for epoch in epochs for text in epoch}) > 15
    assert texts(loader_of(cfg)) == first
    batch = next(iter(loader))
    assert batch["img"].shape == (4, 3, 8, 8)


# shards


@pytest.fixture
def shards(tmp_path):
    return [write_shard(tmp_path / f"{s}.tar", pair_members(range(5 * s, 5 * s + 5))) for s in range(4)]


def test_what_names_shards(tmp_path, shards):
    assert find_shards(str(tmp_path)) == find_shards(f"{tmp_path}/*.tar") == shards
    assert find_shards(f"{tmp_path}/{{1..2}}.tar") == shards[1:3]
    assert find_shards(shards[0]) == shards[:1]
    with pytest.raises(FileNotFoundError, match="2 of 4 shards"):
        find_shards(f"{tmp_path}/{{2..5}}.tar")
    with pytest.raises(FileNotFoundError, match="there is no"):
        find_shards(f"{tmp_path}/none.tar")
    with pytest.raises(ValueError, match=r"count from 3 down to 1, expected \{1\.\.3\}"):
        find_shards(f"{tmp_path}/{{3..1}}.tar")
    assert count_pairs(shards) == 20


def test_an_epoch_of_shards_shows_every_pair_once_in_an_order_of_its_own(cfg, shards):
    loader = loader_of(cfg)
    assert len(loader) == 5
    first, second = texts(loader), texts(loader)
    assert sorted(first) == sorted(second) == sorted(f"picture {n}" for n in range(20))
    assert first != second != sorted(first)
    resumed = loader_of(cfg)
    resumed.set_epoch(1, 2)
    assert texts(resumed) == second
    pairs = {text: img for batch in loader for text, img in zip(batch["text"], batch["img"])}
    assert all(
        torch.equal(img, transform_of(cfg)(Image.open(io.BytesIO(picture(int(text[8:]))))))
        for text, img in pairs.items()
    )


def transform_of(cfg):
    from dassl.data.transforms import build_transform

    return build_transform(cfg, is_train=True)


def test_workers_share_the_shards(cfg, shards):
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 2, 5
    loader = loader_of(cfg)
    found = texts(loader)
    assert sorted(found) == sorted(f"picture {n}" for n in range(20))
    again = loader_of(cfg)
    assert texts(again) == found


def test_processes_share_the_shards(cfg, shards, monkeypatch):
    found = []
    for rank in (0, 1):
        monkeypatch.setattr("dassl.utils.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("dassl.utils.distributed.get_rank", lambda rank=rank: rank)
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 5
        loader = ShardLoader(cfg, shards, lambda image: torch.zeros(1), 20)
        assert len(loader) == 2
        found.append(texts(loader))
    assert sorted(found[0] + found[1]) == sorted(f"picture {n}" for n in range(20))


def test_more_readers_than_shards_and_epochs_longer_than_the_data(cfg, shards):
    cfg.DATASET.PAIRS.EPOCH_PAIRS = 48
    cfg.DATASET.PAIRS.SOURCE = "0.tar"
    loader = loader_of(cfg)
    assert len(loader) == 12
    found = texts(loader)
    assert len(found) == 48
    assert {found.count(text) for text in set(found)} <= {9, 10}


def hostile(tmp_path):
    """A shard with everything that may be wrong, and two good pairs."""
    good = list(pair_members([1, 2]))
    path = write_shard(
        tmp_path / "bad.tar",
        [
            *good[:3],
            ("../../escape.png", picture(3)),
            ("../../escape.txt", b"a name that leads outside"),
            ("/absolute.png", b"no image"),
            ("/absolute.txt", b"caption"),
            ("alone.png", picture(4)),
            ("words.txt", b"no image"),
            ("latin.png", picture(5)),
            ("latin.txt", b"\xff\xfe\xfa"),
            ("blank.png", picture(6)),
            ("blank.txt", b"  "),
            *good[3:],
        ],
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    return path


def test_damaged_members_are_skipped_and_counted(tmp_path, cfg, caplog):
    cfg.DATASET.PAIRS.SOURCE = hostile(tmp_path)
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 1
    cfg.DATASET.PAIRS.EPOCH_PAIRS = 5  # more than the shard has, so that all of it is read
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    with caplog.at_level(logging.WARNING):
        found = set(texts(loader_of(cfg)))
    assert found == {"picture 1", "picture 2", "a name that leads outside"}
    assert "damaged members" in caplog.text
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before  # nothing was written anywhere
    problems = [entry for entry in read_shard(cfg.DATASET.PAIRS.SOURCE) if isinstance(entry, Damaged)]
    assert [err.why for err in problems] == ["it has no caption", "it has no image", "it is a link or device"]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_members_stop_the_run(tmp_path, cfg, workers):
    write_shard(
        tmp_path / "a.tar", [(f"{n}.png", b"no image") if i else (f"{n}.txt", b"x") for n in range(9) for i in (0, 1)]
    )
    cfg.DATALOADER.NUM_WORKERS, cfg.DATASET.PAIRS.MAX_DAMAGED = workers, 3
    with pytest.raises(
        ValueError,
        match=r"4 members .* more than DATASET.PAIRS.MAX_DAMAGED \(3\), such as '\d' in .*it is not an image file",
    ):
        texts(loader_of(cfg))


def test_a_torn_shard_gives_what_it_has(tmp_path, shards):
    content = Path(shards[0]).read_bytes()
    torn = tmp_path / "torn.tar"
    torn.write_bytes(content[: content.index(b"00003.png") + 520])
    *pairs, err = read_shard(str(torn))
    assert [pair.text for pair in pairs] == [b"picture 0", b"picture 1", b"picture 2"]
    assert "cannot be read" in err.why


def test_pairs_of_archives_made_on_a_mac_and_names_that_stand_twice(tmp_path):
    twice = [("1.png", picture(1)), ("1.txt", "\ufeffone".encode()), ("1.png", picture(2)), ("1.txt", b"two")]
    members = [("2.png", picture(3)), ("2.txt", b"three"), ("2.jpg", picture(4))]
    path = write_shard(tmp_path / "a.tar", [entry for m in twice + members for entry in ((f"._{m[0]}", b"mac"), m)])
    *pairs, lone = read_shard(path)
    assert [decode(pair, lambda image: image.getpixel((0, 0))[0]) for pair in pairs] == [
        {"img": 1, "text": "one"},
        {"img": 2, "text": "two"},
        {"img": 3, "text": "three"},
    ]
    assert lone.why == "it has no caption"


def test_shards_without_pairs(tmp_path, cfg):
    write_shard(tmp_path / "a.tar", [("a.json", b"{}")])
    cfg.DATASET.PAIRS.EPOCH_PAIRS = 8
    with pytest.raises(ValueError, match="hold no pairs"):
        texts(loader_of(cfg))
    cfg.DATASET.PAIRS.EPOCH_PAIRS = 0
    with pytest.raises(ValueError, match="an epoch of 0 pairs has no batch of 4"):
        loader_of(cfg)


# the data set


def test_a_test_needs_a_data_set_to_evaluate_on(cfg, shards):
    cfg.TEST.NO_TEST = False
    with pytest.raises(ValueError, match=r"DATASET.PAIRS.EVALUATE names the data set"):
        build_dataset(cfg)
    cfg.DATASET.PAIRS.EVALUATE = "image_text"
    with pytest.raises(ValueError, match="image_text itself"):
        build_dataset(cfg)


def test_captions_of_the_data_set_that_measures_may_be_cut(cfg, shards, tmp_path):
    """A caption may be longer than what a text tower reads, here as in the data set by itself."""
    (tmp_path / "flickr30k").mkdir()
    (tmp_path / "flickr30k" / "1.png").write_bytes(picture(1))
    entry = {"filename": "1.png", "split": "test", "sentences": [{"raw": "a dog " * 100}]}
    (tmp_path / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps({"images": [entry]}))
    cfg.DATASET.PAIRS.SOURCE, cfg.DATASET.PAIRS.EVALUATE = "*.tar", "Flickr30k"
    cfg.TEST.NO_TEST, cfg.TEST.EVALUATOR = False, "Retrieval"
    assert build_dataset(cfg).long_names


@pytest.mark.slow
def test_fine_tuning_on_shards_by_lamb(tmp_path, shards):
    """A whole run: from a backbone, rates by layer, fixed temperature, chunks, measured by retrieval."""
    import clip

    torch.manual_seed(0)
    model = clip.CLIP(24, 64, 2, 64, 16, 77, 2048, 48, 2, 2)
    clip.save_model(model, tmp_path / "start.safetensors")
    options = {
        "DATASET.NAME": "image_text",
        "DATASET.PAIRS.SOURCE": f"{tmp_path}/*.tar",
        "DATASET.PAIRS.EVALUATE": "EmojiRetrieval",
        "TEST.EVALUATOR": "Retrieval",
        "DATALOADER.TRAIN_X.BATCH_SIZE": 10,
        "DATALOADER.TEST.BATCH_SIZE": 100,
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.SIZE": "(64, 64)",
        "INPUT.TRANSFORMS": "('normalize',)",
        "MODEL.BACKBONE.NAME": str(tmp_path / "start.safetensors"),
        "OPTIM.NAME": "lamb",
        "OPTIM.LR": 0.02,
        "OPTIM.WEIGHT_DECAY": 0.05,
        "OPTIM.LR_SCHEDULER": "batch_cosine",
        "OPTIM.WARMUP_EPOCH": 1,
        "OPTIM.MAX_EPOCH": 6,
        "TRAINER.CONTRASTIVE.TEMPERATURE": 0.05,
        "TRAINER.CONTRASTIVE.IMAGE_LAYER_DECAY": 0.75,
        "TRAINER.CONTRASTIVE.KEEP_PATCHES": 1.0,
        "TRAINER.CONTRASTIVE.CHUNK": 4,
    }
    flags = [
        "--root",
        str(tmp_path),
        "--trainer",
        "ContrastiveCLIP",
        "--output-dir",
        str(tmp_path / "run"),
        "--seed",
        "1",
    ]
    result = train.main([*flags, *[str(item) for pair in options.items() for item in pair]])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [record["loss"] for record in records if record["kind"] == "epoch"]
    assert last < first
    assert 0 <= result["mean_recall"] <= 100
    assert result["accuracy"] is None
    assert result["counts"]["evaluated"] > 500
    tuned, _ = clip.load(str(tmp_path / "run" / "clip.safetensors"))
    assert float(tuned.logit_scale.detach().exp()) == pytest.approx(20.0)
    assert not torch.equal(tuned.visual.conv1.weight, model.visual.conv1.weight)
