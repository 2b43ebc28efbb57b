"""From the config to a data set and its loaders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import transforms as T

from dassl.utils import distributed

from .datasets import Datum, build_dataset
from .image_cache import Images, open_images, shared_start
from .loader import SeededLoader, pins_memory
from .samplers import RandomSampler, SequentialSampler, build_sampler
from .seeding import loader_seed
from .transforms import INTERPOLATION_MODES, build_transform

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]

logger = logging.getLogger(__name__)


def build_data_loader(
    cfg: Any,
    sampler_type: str = "SequentialSampler",
    data_source: list[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Any = None,
    is_train: bool = True,
    dataset_wrapper: Any = None,
    stream: int = 0,
    seed: int = 0,
) -> SeededLoader:
    """A loader over `data_source`.

    A training loader leaves out an incomplete last batch unless the whole share of a process is smaller than a batch,
    and has a private generator seeded from cfg.SEED.

    Args:
        stream: number of the training loader in this run; loaders of different streams have unrelated orders.
        seed: base of the items' seeds in evaluation, for a `tfm` that is random there too.

    Raises:
        ValueError: no data, an unknown sampler, or numbers that do not fit together.
    """
    data_source = data_source or []
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    world = distributed.get_world_size()
    if world > 1 and not isinstance(sampler, (RandomSampler, SequentialSampler)):
        raise ValueError(f"{sampler_type} builds whole batches and cannot be shared by {world} processes")
    wrapper = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    return SeededLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        sampler,
        batch_size,
        generator=torch.Generator().manual_seed(loader_seed(cfg.SEED, stream)) if is_train else None,
        drop_last=is_train and len(sampler) // world >= batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        persistent_workers=cfg.DATALOADER.PERSISTENT_WORKERS,
        pin_memory=pins_memory(cfg),
        seed=seed,
    )


class DataManager:
    """The data set of a config with its loaders.

    Attributes: `dataset`, `train_loader_x`, `train_loader_u`, `val_loader`, `test_loader` (the last three may be None).
    A data set with a method `train_loader(cfg, generator)` supplies `train_loader_x` itself.
    """

    def __init__(
        self,
        cfg: Any,
        custom_tfm_train: Any = None,
        custom_tfm_test: Any = None,
        dataset_wrapper: Any = None,
    ):
        dataset = build_dataset(cfg)
        if custom_tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True)
        else:
            logger.info("* Using custom transform for training")
            tfm_train = custom_tfm_train
        if custom_tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False)
        else:
            logger.info("* Using custom transform for testing")
            tfm_test = custom_tfm_test

        def loader(part: Any, data_source: Any, tfm: Any, is_train: bool, stream: int = 0) -> SeededLoader:
            return build_data_loader(
                cfg,
                sampler_type=part.SAMPLER,
                data_source=data_source,
                batch_size=part.BATCH_SIZE,
                n_domain=part.get("N_DOMAIN", 0),
                n_ins=part.get("N_INS", 1),
                tfm=tfm,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
                stream=stream,
                seed=loader_seed(cfg.SEED, 2) if cfg.TEST.VIEWS else 0,
            )

        parts = cfg.DATALOADER
        tfm_eval = [tfm_test, *[tfm_train] * cfg.TEST.VIEWS] if cfg.TEST.VIEWS else tfm_test
        own_loader = getattr(dataset, "train_loader", None)
        if own_loader is None:
            train_loader_x: Any = loader(parts.TRAIN_X, dataset.train_x, tfm_train, is_train=True)
        else:
            train_loader_x = own_loader(cfg, torch.Generator().manual_seed(loader_seed(cfg.SEED)))
        train_loader_u = val_loader = test_loader = None
        if dataset.train_u:
            part = parts.TRAIN_X if parts.TRAIN_U.SAME_AS_X else parts.TRAIN_U
            train_loader_u = loader(part, dataset.train_u, tfm_train, is_train=True, stream=1)
        if dataset.val:
            val_loader = loader(parts.TEST, dataset.val, tfm_eval, is_train=False)
        if dataset.test:
            test_loader = loader(parts.TEST, dataset.test, tfm_eval, is_train=False)
        if val_loader is not None and test_loader is not None and dataset.val == dataset.test:
            test_loader.seeded_items.dataset = (
                val_loader.seeded_items.dataset
            )  # the same, so that a cache has them once

        self.dataset = dataset
        self.tfm_train = tfm_train
        self.tfm_test = tfm_test
        self.tfm_eval = tfm_eval  # with the TEST.VIEWS
        self.train_loader_x = train_loader_x
        self.train_loader_u = train_loader_u
        self.val_loader = val_loader
        self.test_loader = test_loader
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def num_source_domains(self) -> int:
        """Number of source domains in the config."""
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class number to class name."""
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg: Any) -> None:
        """Log the names and sizes of the data as a table of two columns."""
        rows = [("Dataset", cfg.DATASET.NAME)]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(("Source", str(list(cfg.DATASET.SOURCE_DOMAINS))))
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(("Target", str(list(cfg.DATASET.TARGET_DOMAINS))))
        rows.append(("# classes", f"{self.num_classes:,}"))
        splits = (("train_x", self.dataset.train_x), ("train_u", self.dataset.train_u), ("val", self.dataset.val))
        rows.extend((f"# {name}", f"{len(items):,}") for name, items in splits if items)
        rows.append(("# test", f"{len(self.dataset.test or ()):,}"))
        left, right = (max(len(row[column]) for row in rows) for column in (0, 1))
        line = f"{'-' * left}  {'-' * right}"
        logger.info("\n".join([line, *(f"{name:<{left}}  {value}" for name, value in rows), line]))


class DatasetWrapper(Dataset):
    """Items as dictionaries with images read and transformed.

    An item has img (one more, img2, ..., per further transform), label, domain, impath, index, and img0 (resized and
    normalised but not augmented) if DATALOADER.RETURN_IMG0. Whatever is made of it, an image is opened and decoded once
    per item; with DATALOADER.CACHE once in all, as long as the cache has room.

    Args:
        data_source: the items.
        transform: None (img is the PIL image), a transform, or a list of transforms.
        is_train: apply each transform DATALOADER.K_TRANSFORMS times and give a list if that is more than once.

    Raises:
        ValueError: several views are wanted of no transform, or (when an item is read) the image does not decode.
        FileNotFoundError: the image of an item that is read is not there.
    """

    def __init__(self, cfg: Any, data_source: Sequence[Datum], transform: Any = None, is_train: bool = False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"Cannot augment the image {self.k_tfm} times because transform is None")
        steps = [
            T.Resize(tuple(cfg.INPUT.SIZE), interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]),
            T.ToTensor(),
        ]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(steps)
        self._open_cache()

    def _open_cache(self) -> None:
        """Divide the transforms into what is cached and what is done for every item; without a cache nothing is."""
        self.images: Images = Images()
        self._rest: list[Any] | None = None
        self._divided = self.transform
        if self.cfg.DATALOADER.CACHE == "none" or self.transform is None:
            return
        chains = list(self.transform) if isinstance(self.transform, (list, tuple)) else [self.transform]
        chains += [self.to_tensor] if self.return_img0 else []
        divided = shared_start(chains)
        if divided is None or type(self)._transform_image is not DatasetWrapper._transform_image:
            logger.warning("No cache of images for transforms that are not the engine's or torchvision's own")
            return
        start, self._rest = divided
        self.images = open_images(self.cfg, (item.impath for item in self.data_source), start)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output: dict[str, Any] = {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }
        chains, to_tensor, images = self.transform, self.to_tensor, self.images
        if self._rest is not None and chains is self._divided:
            many = isinstance(chains, (list, tuple))
            chains = self._rest[: len(chains)] if many else self._rest[0]
            to_tensor = self._rest[-1]
        elif self._rest is not None:  # another transform was set since
            images = Images()
        img0 = images(item.impath)
        if chains is None:
            output["img"] = img0
        elif isinstance(chains, (list, tuple)):
            for number, transform in enumerate(chains, start=1):
                output["img" if number == 1 else f"img{number}"] = self._transform_image(transform, img0)
        else:
            output["img"] = self._transform_image(chains, img0)
        if self.return_img0:
            output["img0"] = to_tensor(img0)
        return output

    def _transform_image(self, transform: Any, img0: Any) -> Any:
        views = [transform(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views
