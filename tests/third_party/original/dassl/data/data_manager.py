"""Loaders of a data set."""

import torch

from dassl.data.datasets import build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.utils import read_image


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
):
    return torch.utils.data.DataLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        self.dataset = dataset = build_dataset(cfg)
        train = custom_tfm_train or build_transform(cfg, is_train=True)
        test = custom_tfm_test or build_transform(cfg, is_train=False)

        def loader(part, items, tfm, is_train):
            wrapped = {"tfm": tfm, "is_train": is_train, "dataset_wrapper": dataset_wrapper}
            return items and build_data_loader(cfg, part.SAMPLER, items, part.BATCH_SIZE, **wrapped)

        parts = cfg.DATALOADER
        self.train_loader_x = loader(parts.TRAIN_X, dataset.train_x, train, True)
        self.train_loader_u = loader(parts.TRAIN_U, dataset.train_u, train, True)
        self.val_loader = loader(parts.TEST, dataset.val, test, False)
        self.test_loader = loader(parts.TEST, dataset.test, test, False)
        self.num_classes, self.lab2cname = dataset.num_classes, dataset.lab2cname
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)


class DatasetWrapper(torch.utils.data.Dataset):
    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg, self.data_source, self.transform, self.is_train = cfg, data_source, transform, is_train

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        found = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        views = self.cfg.DATALOADER.K_TRANSFORMS if self.is_train else 1
        image = [self.transform(read_image(item.impath)) for _ in range(views)]
        return {**found, "img": image if views > 1 else image[0]}
