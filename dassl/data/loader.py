"""A torch DataLoader whose order and augmentation depend on the seed and the epoch alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dassl.utils import distributed

from .samplers import SeededSampler
from .seeding import draw_int64, item_seed, kept_generators, seed_generators

__all__ = ["SeededLoader", "pins_memory"]


def pins_memory(cfg: Any) -> bool:
    """True if loaders put batches in page-locked memory: on a GPU, unless switched off."""
    return bool(cfg.DATALOADER.PIN_MEMORY and cfg.USE_CUDA and torch.cuda.is_available())


class SeededLoader(DataLoader):
    """Batches of `dataset` in the order that `sampler` gives for each epoch.

    A training loader owns a generator and draws exactly two int64 values from it per pass: the base seed of the items
    and the seed of the order, as torch's DataLoader and RandomSampler draw them from the global generator. So the
    order equals that of a plain torch loader with workers and nothing else drawing; here it holds for every number of
    workers, nothing else can shift it, and a pass over any other loader draws nothing. Each item is transformed under
    a seed made from the base seed and its position in the epoch, so augmentation does not depend on the number of
    workers either. Workers need no more than that seed, which comes with the index, so they may live on from pass to
    pass. In a run of several processes each takes every world-size-th item of the same order: training orders are cut
    to equal lengths, evaluation orders are not padded.

    Args:
        dataset: gives an item per index.
        sampler: gives the order of indices.
        batch_size: items per batch and process.
        generator: private generator of a training loader; None for evaluation, which is the same at every pass.
        drop_last: leave out an incomplete last batch.
        seed: base of the items' seeds in evaluation, for a transform that is random there too.
        collate: items -> batch.
        persistent_workers: start the workers once, at the first pass. They keep the dataset as it was then. A pass that
            starts while another one is under way has its own workers.

    Raises:
        ValueError: no items, or in training fewer items than processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: SeededSampler,
        batch_size: int,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        persistent_workers: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
    ):
        self.item_base = seed
        self.order_sampler = sampler
        self.order_generator = generator
        self._pass_start: torch.Tensor | None = None
        self._skip = 0
        self._plan = _Plan(_share(len(sampler), generator is not None))
        if len(self._plan) == 0 and (generator is not None or len(sampler) == 0):
            processes = distributed.get_world_size()
            raise ValueError(f"a loader over {len(sampler)} items is empty in a run of {processes} process(es)")
        batches = len(self._plan) // batch_size + (len(self._plan) % batch_size > 0 and not drop_last)
        workers = min(num_workers, batches)  # more would only cost their start
        self._holder: weakref.ref[_Pass] | None = None  # the last pass that has the persistent workers
        self.seeded_items = _SeededItems(dataset)
        super().__init__(
            self.seeded_items,
            batch_size=batch_size,
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=persistent_workers and workers > 0,
            collate_fn=partial(_collate, collate=collate or _default_collate),
            pin_memory=pin_memory,
            drop_last=drop_last,
            generator=torch.Generator(),  # torch draws its workers' seed from this one, not from the global generator
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        base_seed, order_seed = self.item_base, 0
        if self.order_generator is not None:
            self._pass_start = self.order_generator.get_state()
            base_seed, order_seed = draw_int64(self.order_generator), draw_int64(self.order_generator)
        rank, world = distributed.get_rank(), distributed.get_world_size()
        order = self.order_sampler.order(order_seed)
        positions = range(rank, len(order), world)[: len(self._plan)]
        skipped, self._skip = self._skip * (self.batch_size or 1), 0
        self._plan.keys = [(order[position], item_seed(base_seed, position)) for position in positions[skipped:]]
        self.generator.manual_seed(base_seed & (2**63 - 1))
        holder = None if self._holder is None else self._holder()
        if self.persistent_workers and holder is not None and not holder.ended:
            return _Pass(self, self._get_iterator())
        current = _Pass(self, super().__iter__())
        self._holder = weakref.ref(current)
        return current

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Position of the loader, as a tensor and a number.

        Args:
            batches_done: None at the end of an epoch: a loader restored from this state continues with the next pass.
                A number within an epoch: it continues the running pass after that many batches.
        """
        if self.order_generator is None:
            return {}
        within = batches_done is not None and self._pass_start is not None
        state = self._pass_start if within else self.order_generator.get_state()
        return {"generator": state, "batches": batches_done if within else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; ValueError if this is not a state of a training loader."""
        if self.order_generator is None:
            if state:
                raise ValueError("an evaluation loader has no state to restore")
            return
        if set(state) != {"generator", "batches"}:
            raise ValueError(f"the state of a loader holds generator and batches, got {', '.join(state) or 'nothing'}")
        self.order_generator.set_state(state["generator"])
        self.skip(state["batches"])

    def skip(self, n_batches: int) -> None:
        """Leave out the first `n_batches` batches of the next pass without loading them."""
        if not 0 <= n_batches <= len(self):
            raise ValueError(f"cannot skip {n_batches} batches of {len(self)}")
        self._skip = n_batches


class _Plan(Sampler):
    """Samples of a pass: (index, seed) pairs, filled in when the pass starts."""

    def __init__(self, length: int):
        self.length = length
        self.keys: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return self.length


class _SeededItems(Dataset):
    """`dataset` under the seed that comes with each index; other attributes are those of `dataset`."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Any]:
        """The items of one batch, each made under its own seed; torch calls this where it exists."""
        items = []
        with kept_generators():
            for index, seed in keys:
                seed_generators(seed)
                try:
                    items.append(self.dataset[index])
                except (ValueError, FileNotFoundError) as err:
                    return [_ItemError(err)]
        return items

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not set yet while a worker unpickles this object
            raise AttributeError(name)
        return getattr(self.dataset, name)


class _ItemError:
    """An item that could not be read, on its way from a worker to the main process with its message intact."""

    def __init__(self, err: Exception):
        self.err = err


def _collate(items: list[Any], collate: Callable[[list[Any]], Any]) -> Any:
    return items[0] if isinstance(items[0], _ItemError) else collate(items)


def _default_collate(items: list[Any]) -> Any:
    if isinstance(items[0], dict) and isinstance(items[0].get("img"), Image.Image):
        raise ValueError("images are no tensors, as they have no transform: INPUT.NO_TRANSFORM must be False here")
    return default_collate(items)


class _Pass(Iterator[Any]):
    """The batches of one pass over a loader."""

    def __init__(self, loader: SeededLoader, batches: Iterator[Any]):
        self.loader, self.keys, self.batches = loader, loader._plan.keys, batches
        self.ended = self.begun = False

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        if not self.begun:
            self.begun, self.loader._plan.keys = True, self.keys  # read now if there are no workers
        try:
            batch = next(self.batches)
        except BaseException as err:
            self.ended = True
            if self.loader._iterator is self.batches and not isinstance(err, StopIteration):
                self.loader._iterator = None  # its workers may be gone
            self.batches = iter(())
            raise
        if isinstance(batch, _ItemError):
            self.ended, self.batches = True, iter(())
            raise batch.err
        return batch


def _share(total: int, training: bool) -> int:
    """Items of this process: equal shares in training, every item exactly once in evaluation."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    return total // world if training else len(range(rank, total, world))
