"""Loaders and batches made from a config."""

import logging

import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


@pytest.fixture
def items(tmp_path):
    out = []
    for index in range(10):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (12, 8), (25 * index, 0, 255)).save(path)
        out.append(Datum(str(path), index % 2, index % 3, f"class {index % 2}"))
    return out


@pytest.fixture
def cfg(items, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", {})

    @DATASET_REGISTRY.register()
    class Ten(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=items, train_u=items[:4], val=[], test=items[:5])

    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", "Ten", "INPUT.SIZE", "(8, 8)", "INPUT.TRANSFORMS", "['normalize']"])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", "0", "SEED", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"])
    return cfg


def test_loaders(cfg):
    dm = DataManager(cfg)
    assert (len(dm.train_loader_x), len(dm.train_loader_u), dm.val_loader, len(dm.test_loader)) == (2, 1, None, 1)
    assert (dm.num_classes, dm.num_source_domains) == (2, 0)
    assert dm.lab2cname == {0: "class 0", 1: "class 1"}
    batch = next(iter(dm.train_loader_x))
    assert set(batch) == {"img", "label", "domain", "impath", "index"}
    assert batch["img"].shape == (4, 3, 8, 8)
    assert batch["label"].tolist() == [index % 2 for index in batch["index"].tolist()]
    assert batch["domain"].tolist() == [index % 3 for index in batch["index"].tolist()]
    assert batch["impath"] == [dm.dataset.train_x[index].impath for index in batch["index"].tolist()]
    last = list(dm.test_loader)[-1]
    assert last["index"].tolist() == [0, 1, 2, 3, 4]


def test_loader_of_the_unlabelled_follows_its_own_options(cfg):
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 2
    assert len(DataManager(cfg).train_loader_u) == 2


def test_order_depends_on_the_seed_alone(cfg):
    def order():
        return [index for batch in DataManager(cfg).train_loader_x for index in batch["index"].tolist()]

    torch.manual_seed(5)
    first = order()
    torch.manual_seed(6)
    assert order() == first
    cfg.SEED = 0
    zero = order()
    assert zero != first
    cfg.SEED = -1
    torch.manual_seed(0)
    assert order() == zero


def test_summary(cfg, caplog):
    cfg.DATASET.SOURCE_DOMAINS = ("a", "b")
    with caplog.at_level(logging.INFO):
        dm = DataManager(cfg)
    assert dm.num_source_domains == 2
    lines = caplog.records[-1].message.splitlines()
    rows = [line.split("  ") for line in lines[1:-1]]
    assert [row[0].strip() for row in rows] == ["Dataset", "Source", "# classes", "# train_x", "# train_u", "# test"]
    assert lines[1].endswith("Ten")
    assert lines[4].endswith("10")
    assert set(lines[0]) == {"-", " "}


def test_custom_transforms(cfg, caplog):
    with caplog.at_level(logging.INFO):
        dm = DataManager(cfg, custom_tfm_train=[T.ToTensor(), T.PILToTensor()], custom_tfm_test=T.PILToTensor())
    assert "* Using custom transform for training" in caplog.text
    batch = next(iter(dm.train_loader_x))
    assert batch["img"].dtype == torch.float32
    assert batch["img2"].dtype == torch.uint8
    assert next(iter(dm.test_loader))["img"].dtype == torch.uint8


def test_dataset_with_its_own_training_loader(cfg, items):
    seen = []

    class Own(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=items, test=items)

        def train_loader(self, cfg, generator):
            seen.append(generator.initial_seed())
            return [{"img": torch.zeros(1)}]

    DATASET_REGISTRY.register(Own)
    cfg.DATASET.NAME = "Own"
    dm = DataManager(cfg)
    assert seen == [1]
    assert len(dm.train_loader_x) == 1
    assert len(dm.test_loader) == 1


def test_wrapper_views_and_img0(cfg, items):
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    flip = T.Compose([T.RandomCrop(4), T.ToTensor()])
    item = DatasetWrapper(cfg, items, transform=flip, is_train=True)[3]
    assert [view.shape for view in item["img"]] == [(3, 4, 4)] * 2
    expected = T.Compose([T.Resize((8, 8)), T.ToTensor(), T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)])
    assert torch.equal(item["img0"], expected(Image.open(items[3].impath)))
    assert DatasetWrapper(cfg, items, transform=flip)[3]["img"].shape == (3, 4, 4)
    with pytest.raises(ValueError, match="2 times because transform is None"):
        DatasetWrapper(cfg, items, is_train=True)
    cfg.DATALOADER.K_TRANSFORMS = 1
    assert isinstance(DatasetWrapper(cfg, items, is_train=True)[0]["img"], Image.Image)


def test_corrupt_image_is_named(cfg, items):
    with open(items[2].impath, "wb") as file:
        file.write(b"nothing")
    loader = DataManager(cfg).test_loader
    with pytest.raises(ValueError, match=r'cannot decode the image ".*2\.png": it is not an image file'):
        list(loader)


def test_build_data_loader_faults(cfg, items, monkeypatch):
    with pytest.raises(ValueError, match="no items"):
        build_data_loader(cfg, "RandomSampler", None)
    with pytest.raises(ValueError, match="Unknown sampler type"):
        build_data_loader(cfg, "Sampler", items)
    monkeypatch.setattr("dassl.utils.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="RandomClassSampler builds whole batches"):
        build_data_loader(cfg, "RandomClassSampler", items, batch_size=4, n_ins=2)


def test_memory_is_pinned_where_there_is_a_gpu_unless_switched_off(cfg, items, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for use_cuda, chosen, expected in ((True, True, True), (True, False, False), (False, True, False)):
        cfg.USE_CUDA, cfg.DATALOADER.PIN_MEMORY = use_cuda, chosen
        assert build_data_loader(cfg, data_source=items).pin_memory is expected


def test_own_wrapper(cfg, items):
    class Paths(torch.utils.data.Dataset):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source = data_source

        def __len__(self):
            return len(self.data_source)

        def __getitem__(self, index):
            return self.data_source[index].impath

    dm = DataManager(cfg, dataset_wrapper=Paths)
    assert next(iter(dm.test_loader)) == [item.impath for item in items[:5]]
