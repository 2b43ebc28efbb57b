"""Cached images give the tensors of uncached ones to the last bit, are decoded once, and survive what the disk does."""

import logging
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision import transforms as T

from dassl.config import ConfigError, get_cfg_default
from dassl.config.checks import check_values
from dassl.data import DataManager, DatasetWrapper, image_cache
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.image_cache import DiskImages, Images, RamImages, shared_start
from dassl.data.transforms import AVAI_CHOICES, build_transform

CHAINS = [
    (),
    ("random_flip", "normalize"),
    ("random_resized_crop", "random_flip", "normalize"),
    ("random_crop", "cutout", "normalize", "gaussian_noise"),
    ("random_translation", "random_flip", "colorjitter", "randomgrayscale", "instance_norm"),
    ("randaugment", "gaussian_blur", "imagenet_policy"),
    ("cifar10_policy", "svhn_policy", "center_crop"),
]


@pytest.fixture
def items(tmp_path):
    """Photographs of different sizes and kinds: JPEG, gray, palette with transparency, EXIF orientation."""
    random = np.random.default_rng(0)
    made = []
    for number in range(7):
        pixels = random.integers(0, 256, (20 + 3 * number, 41 - 4 * number, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((30 + number, 25), Image.Resampling.BICUBIC)
        path = tmp_path / "images" / f"{number}.{'png' if number % 3 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        if number == 1:
            image = image.convert("L")
        if number == 2:
            image = image.convert("P")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
        made.append(Datum(str(path), number % 2, classname=f"class {number % 2}"))
    return made


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", "(24, 24)", "INPUT.INTERPOLATION", "bicubic", "SEED", "3"])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", "0", "DATASET.CACHE_DIR", str(tmp_path / "cache")])
    cfg.INPUT.GB_K, cfg.INPUT.CUTOUT_LEN = 5, 6
    return cfg


@pytest.fixture
def decodes(monkeypatch):
    """decodes(): paths decoded since the last call, in all forks of this process."""
    count = multiprocessing.SimpleQueue()

    def read(path):
        count.put(str(path))
        return read_image(path)

    read_image = image_cache.read_image
    monkeypatch.setattr(image_cache, "read_image", read)

    def taken():
        found = []
        while not count.empty():
            found.append(count.get())
        return found

    return taken


def flat(value):
    return [part for entry in value for part in flat(entry)] if isinstance(value, list) else [value]


def batches(cfg, items, cache, tfm, is_train, epochs=2):
    """All tensors of some epochs."""
    cfg.DATALOADER.CACHE = cache
    sampler = "RandomSampler" if is_train else "SequentialSampler"
    loader = build_data_loader(cfg, sampler, items, batch_size=3, tfm=tfm, is_train=is_train)
    found = [batch for _ in range(epochs) for batch in loader]
    return [
        tensor for batch in found for name in sorted(batch) if name.startswith("img") for tensor in flat(batch[name])
    ]


def same(one, other):
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain) or "plain")
@pytest.mark.parametrize("is_train", [True, False])
def test_the_same_tensors_for_every_chain(cfg, items, chain, is_train):
    tfm = build_transform(cfg, is_train, chain)
    expected = batches(cfg, items, "none", tfm, is_train)
    for cache in ("ram", "disk", "disk"):
        assert same(batches(cfg, items, cache, tfm, is_train), expected)


def test_all_transforms_are_tried_above():
    assert {name for chain in CHAINS for name in chain} == set(AVAI_CHOICES)


@pytest.mark.parametrize("chain", [("random_flip", "normalize"), ("random_resized_crop", "normalize")])
def test_views_lists_and_img0_come_from_one_decoding(cfg, items, chain, decodes):
    cfg.DATALOADER.K_TRANSFORMS, cfg.DATALOADER.RETURN_IMG0 = 3, True
    cfg.INPUT.TRANSFORMS = chain
    tfm = [build_transform(cfg, True, chain), build_transform(cfg, False, chain)]
    expected = batches(cfg, items, "none", tfm, True)
    assert len(expected) == 4 * 7
    assert len(decodes()) == 2 * 6
    for cache in ("ram", "disk"):
        assert same(batches(cfg, items, cache, tfm, True), expected)
        found = decodes()
        assert len(found) == len(set(found)) <= 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_share_and_change_nothing(cfg, items, decodes, persistent):
    cfg.DATALOADER.PERSISTENT_WORKERS = persistent
    for chain, is_train in ((CHAINS[2], True), (CHAINS[1], False)):
        tfm = build_transform(cfg, is_train, chain)
        cfg.DATALOADER.NUM_WORKERS = 0
        expected = batches(cfg, items, "none", tfm, is_train, epochs=4)
        decodes()
        for cache in ("none", "ram", "disk"):
            cfg.DATALOADER.NUM_WORKERS = 2
            assert same(batches(cfg, items, cache, tfm, is_train, epochs=4), expected)
            found = decodes()
            if cache != "none":
                assert sorted(found) == sorted(set(found))


def test_what_is_done_once():
    resize, crop, flip, tensor = T.Resize((8, 8)), T.CenterCrop(6), T.RandomHorizontalFlip(), T.ToTensor()
    start, rest = shared_start([T.Compose([resize, crop, tensor])])
    assert start == [resize, crop]
    assert rest[0].transforms == [tensor]
    start, rest = shared_start([T.Compose([resize, flip, crop, tensor]), T.Compose([T.Resize((8, 8)), tensor])])
    assert [type(step) for step in start] == [T.Resize]
    assert [chain.transforms for chain in rest] == [[flip, crop, tensor], [tensor]]
    chains = [T.Compose([resize, tensor]), T.Compose([T.Resize((8, 9)), tensor])]
    assert shared_start(chains) == ([], chains)
    assert shared_start([T.Compose([T.RandomResizedCrop(8), tensor])])[0] == []

    class Own(T.Resize):
        pass

    for step in (Own(8), T.Lambda(lambda image: image), T.RandomApply([lambda image: image])):
        assert shared_start([T.Compose([resize, step, tensor])]) is None


def draw_in_place(image):
    """A careless transform: it changes the image it was given, and uses more than its pixels."""
    turned = image.getexif().get(0x0112, 0)
    ImageDraw.Draw(image).rectangle((2, 2, 5 + turned, 7), fill=(255, 0, 0))
    return image


def test_transforms_that_are_not_known_are_left_alone(cfg, items, caplog):
    tfm = T.Compose([T.Resize((9, 9)), T.Lambda(draw_in_place), T.RandomHorizontalFlip(), T.ToTensor()])
    cfg.DATALOADER.K_TRANSFORMS = 2
    expected = batches(cfg, items, "none", tfm, True)
    for cache in ("ram", "disk"):
        caplog.clear()
        assert same(batches(cfg, items, cache, tfm, True), expected)
        assert "No cache of images for transforms that are not the engine's" in caplog.text


def test_a_transform_that_is_set_later_is_used(cfg, items):
    cfg.DATALOADER.CACHE = "ram"
    data = DatasetWrapper(cfg, items, build_transform(cfg, False, ()))
    first = data[1]["img"]
    data.transform = T.Compose([T.Resize((5, 6)), T.ToTensor()])
    assert first.shape == (3, 24, 24)
    assert torch.equal(data[1]["img"], data.transform(Images()(items[1].impath)))


def test_memory_has_a_limit(cfg, items, decodes, caplog):
    cfg.DATALOADER.CACHE_RAM_GIB = (4 * 24 * 24 * 3 + 1) / 2**30
    tfm = build_transform(cfg, False, ())
    expected = batches(cfg, items, "none", tfm, False)
    decodes()
    assert same(batches(cfg, items, "ram", tfm, False), expected)
    assert len(decodes()) == 7 + 3
    assert caplog.text.count("The cache of images is full") == 1


def test_no_memory_is_no_fault(cfg, items, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(image_cache.mmap, "mmap", refuse)
    tfm = build_transform(cfg, False, ())
    assert len(batches(cfg, items, "ram", tfm, False)) == 6
    assert "No cache in memory" in caplog.text


def test_a_lock_that_is_never_let_go_costs_the_cache_only(cfg, items, monkeypatch):
    monkeypatch.setattr(image_cache, "_LOCK_SECONDS", 0.01)
    images = RamImages([item.impath for item in items], (), 10**6)
    one = images(items[0].impath)
    images.lock.acquire()
    assert images(items[0].impath).tobytes() == one.tobytes()
    assert images.stuck


def test_a_pickled_cache_in_memory_starts_empty(items, decodes):
    images = RamImages([item.impath for item in items], [T.Resize((4, 4))], 10**6)
    one = images(items[0].impath)
    copy = pickle.loads(pickle.dumps(images))
    assert copy(items[0].impath).tobytes() == one.tobytes()
    assert len(decodes()) == 2
    foreign = copy(items[1].impath), Images([T.Resize((4, 4))])(items[1].impath)
    assert foreign[0].tobytes() == foreign[1].tobytes()


def test_validation_that_is_the_test_is_kept_once(cfg, items, monkeypatch, decodes):
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", {})

    @DATASET_REGISTRY.register()
    class Same(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=items, val=items[:5], test=list(items[:5]))

    cfg.DATASET.NAME, cfg.DATALOADER.CACHE = "Same", "ram"
    manager = DataManager(cfg)
    val, test = ([batch["img"] for batch in loader] for loader in (manager.val_loader, manager.test_loader))
    assert same(val, test)
    assert len(decodes()) == 5


# On disk.


def files(tmp_path):
    return sorted(path for path in (tmp_path / "cache" / "pixels").rglob("*") if path.is_file())


@pytest.fixture
def disk(cfg, items, tmp_path):
    """disk(): the tensors of a test loader with the cache on disk, and whether they are right."""
    tfm = build_transform(cfg, False, ("normalize",))
    cfg.INPUT.TRANSFORMS = ("normalize",)

    def look():
        return same(batches(cfg, items, "disk", tfm, False, 1), batches(cfg, items, "none", tfm, False, 1))

    return look


def test_a_later_run_decodes_nothing(cfg, items, disk, decodes, tmp_path):
    assert disk()
    assert len(decodes()) == 14
    assert len(files(tmp_path)) == 7
    assert disk()
    assert len(decodes()) == 7
    other = build_transform(cfg, True, ("random_resized_crop",))
    batches(cfg, items, "disk", other, True, 1)
    assert len({path.parent.parent for path in files(tmp_path)}) == 2  # other steps, another folder


def test_a_changed_image_is_read_anew(items, disk, tmp_path):
    assert disk()
    path = items[3].impath
    before = os.stat(path)
    Image.new("RGB", (9, 31), (1, 200, 3)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert disk()  # another size
    before = os.stat(path)
    with open(path, "r+b") as file:
        content = file.read().replace(b"IDAT", b"IDAT")
        file.seek(0)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert disk()
    assert len(files(tmp_path)) == 9


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        lambda content: content[:8] + b"\xff" * 8 + content[16:],
        lambda content: content[:8] + content[12:16] + content[8:12] + content[16:],
    ],
)
def test_damage_is_found_said_once_and_repaired(disk, decodes, tmp_path, caplog, damage):
    assert disk()
    whole = {path: path.read_bytes() for path in files(tmp_path)}
    for path, content in whole.items():
        path.write_bytes(damage(content))
    decodes()
    assert disk()
    changed = sum(damage(content) != content for content in whole.values())
    assert len(decodes()) == 7 + changed
    assert caplog.text.count("in the cache of images is damaged") == min(changed, 1)
    assert {path: path.read_bytes() for path in files(tmp_path)} == whole


def test_a_file_of_another_image_is_not_taken(disk, tmp_path, caplog):
    assert disk()
    one, other = files(tmp_path)[:2]
    one.write_bytes(other.read_bytes())
    assert disk()
    assert "damaged" in caplog.text


def test_a_full_disk_is_said_once(disk, tmp_path, caplog, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.os, "replace", full)
    assert disk()
    assert caplog.text.count("cannot be written (No space left on device)") == 1
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said_once(cfg, disk, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert disk()
    assert caplog.text.count("cannot be written") == 1
    assert "DATASET.CACHE_DIR" in caplog.text


def test_too_little_space_is_said_before(items, tmp_path, caplog):
    DiskImages((), tmp_path / "pixels").check_place(2**60)
    assert "needs up to 1073741824.0 GiB" in caplog.text


def _fill(folder, paths, barrier):
    images = DiskImages([T.Resize((16, 16))], folder)
    barrier.wait()
    for _ in range(3):
        for path in paths:
            images(path)


@pytest.mark.slow
def test_several_processes_fill_one_folder(items, tmp_path):
    context = multiprocessing.get_context("fork")
    paths, barrier = [item.impath for item in items], context.Barrier(3)
    workers = [context.Process(target=_fill, args=(tmp_path / "p", paths, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    images, plain = DiskImages([T.Resize((16, 16))], tmp_path / "p"), Images([T.Resize((16, 16))])
    assert [images(path).tobytes() for path in paths] == [plain(path).tobytes() for path in paths]
    found = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    assert len(found) == 7
    assert not [path for path in found if path.suffix == ".tmp"]
    assert pickle.loads(pickle.dumps(images))(paths[0]).tobytes() == plain(paths[0]).tobytes()


def test_missing_and_damaged_images_are_named_as_without(cfg, items):
    with open(items[2].impath, "wb") as file:
        file.write(b"nothing")
    os.unlink(items[4].impath)
    for cache in ("none", "ram", "disk"):
        cfg.DATALOADER.CACHE = cache
        data = DatasetWrapper(cfg, items, build_transform(cfg, False, ()))
        with pytest.raises(ValueError, match="cannot decode the image"):
            data[2]
        with pytest.raises(FileNotFoundError, match="No file exists at"):
            data[4]


def test_values(cfg):
    cfg.DATALOADER.CACHE = "memory"
    with pytest.raises(ConfigError, match=r"DATALOADER\.CACHE is 'memory', expected one of none, ram, disk"):
        check_values(cfg)


def test_the_log_says_what_is_kept(cfg, items, caplog):
    cfg.DATALOADER.CACHE = "ram"
    with caplog.at_level(logging.INFO):
        DatasetWrapper(cfg, items, build_transform(cfg, False, ()))
    assert "Cache of 7 images in memory after Resize(size=24" in caplog.text
