"""Orders of items. Each sampler has a pure function from a seed to an order; the loader supplies the seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import Sampler

from .datasets.base_dataset import Datum

__all__ = [
    "RandomClassSampler",
    "RandomDomainSampler",
    "RandomSampler",
    "SeededSampler",
    "SeqDomainSampler",
    "SequentialSampler",
    "build_sampler",
]


class SeededSampler(Sampler[int]):
    """Base class: `order(seed)` says everything; the number of items is the same for every seed."""

    def order(self, seed: int) -> list[int]:
        """Indices of one epoch, determined by `seed` alone."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(int(torch.empty((), dtype=torch.int64).random_().item())))

    def __len__(self) -> int:
        return len(self.order(0))


class SequentialSampler(SeededSampler):
    """0, 1, 2, ..."""

    def __init__(self, data_source: Sized):
        self.data_source = data_source

    def order(self, seed: int) -> list[int]:
        """The indices in order; the seed does not matter."""
        return list(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(SequentialSampler):
    """A permutation, the same that torch's RandomSampler makes of this seed."""

    def order(self, seed: int) -> list[int]:
        """torch.randperm of a generator seeded with `seed`."""
        return torch.randperm(len(self.data_source), generator=torch.Generator().manual_seed(seed)).tolist()


class _GroupSampler(SeededSampler):
    """Batches of several keys (domains or classes) with the same number of items of each.

    Every batch takes the keys that have most items left, ties at random, so that the number of batches does not depend
    on the seed; then the batches are shuffled.
    """

    def __init__(self, groups: dict[int, list[int]], keys_per_batch: int, items_per_key: int, fill: bool):
        self.groups = groups
        self.keys_per_batch = keys_per_batch
        self.items_per_key = items_per_key
        self.fill = fill  # draw with replacement from a group that is too small for one share
        self._length = len(self.order(0))

    def __len__(self) -> int:
        return self._length

    def order(self, seed: int) -> list[int]:
        """Batch after batch, each key's items side by side."""
        rng = random.Random(seed)
        shares: dict[int, list[list[int]]] = {}
        for key, indices in self.groups.items():
            if self.fill and len(indices) < self.items_per_key:
                drawn = rng.choices(indices, k=self.items_per_key)
            else:
                drawn = rng.sample(indices, len(indices))
            count = len(drawn) // self.items_per_key
            shares[key] = [drawn[i * self.items_per_key : (i + 1) * self.items_per_key] for i in range(count)]
        batches = []
        while True:
            ready = [key for key, left in shares.items() if left]
            if len(ready) < self.keys_per_batch:
                break
            rng.shuffle(ready)
            ready.sort(key=lambda key: -len(shares[key]))
            batches.append([index for key in ready[: self.keys_per_batch] for index in shares[key].pop()])
        rng.shuffle(batches)
        return [index for batch in batches for index in batch]


class RandomDomainSampler(_GroupSampler):
    """Batches of `n_domain` domains with batch_size / n_domain items each.

    Raises:
        ValueError: batch_size is not divisible by n_domain, or there are fewer domains.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int):
        groups = _indices_by(data_source, "domain")
        n_domain = len(groups) if n_domain is None or n_domain <= 0 else n_domain
        if n_domain > len(groups) or batch_size % n_domain:
            raise ValueError(
                f"N_DOMAIN is {n_domain}, expected a divisor of BATCH_SIZE ({batch_size}) and "
                f"at most the number of domains ({len(groups)})"
            )
        super().__init__(groups, n_domain, batch_size // n_domain, fill=False)


class SeqDomainSampler(SeededSampler):
    """A batch of the first domain, one of the second, ... in turn, until a domain has no full batch left."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int):
        self.groups = _indices_by(data_source, "domain")
        self.batch_size = batch_size

    def order(self, seed: int) -> list[int]:
        """Whole batches of one domain each."""
        rng = random.Random(seed)
        drawn = [rng.sample(indices, len(indices)) for indices in self.groups.values()]
        rounds = min(len(indices) for indices in drawn) // self.batch_size
        size = self.batch_size
        return [index for turn in range(rounds) for indices in drawn for index in indices[turn * size :][:size]]

    def __len__(self) -> int:
        return min(map(len, self.groups.values())) // self.batch_size * self.batch_size * len(self.groups)


class RandomClassSampler(_GroupSampler):
    """Batches of batch_size / n_ins classes with `n_ins` items each; small classes are drawn with replacement.

    Raises:
        ValueError: batch_size is not divisible by n_ins, or there are too few classes.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int):
        groups = _indices_by(data_source, "label")
        if n_ins < 1 or batch_size % n_ins or batch_size // n_ins > len(groups):
            raise ValueError(
                f"N_INS is {n_ins}, expected a divisor of BATCH_SIZE ({batch_size}) such that "
                f"BATCH_SIZE / N_INS is at most the number of classes ({len(groups)})"
            )
        super().__init__(groups, batch_size // n_ins, n_ins, fill=True)


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> SeededSampler:
    """The sampler called `sampler_type` over `data_source`.

    Raises:
        ValueError: unknown name, no data, or numbers that do not fit together.
    """
    if not data_source:
        raise ValueError(f"no items to sample from with {sampler_type}")
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    names = "RandomSampler, SequentialSampler, RandomDomainSampler, SeqDomainSampler, RandomClassSampler"
    raise ValueError(f"Unknown sampler type: {sampler_type}, expected one of {names}")


def _indices_by(data_source: Sequence[Datum], attribute: str) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(data_source):
        groups.setdefault(getattr(item, attribute), []).append(index)
    return groups
