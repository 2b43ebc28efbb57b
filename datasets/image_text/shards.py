"""Shards of images with captions: .tar archives in WebDataset's layout, read as streams.

A pair is two members next to each other whose names differ in the suffix alone: 000001.jpg and 000001.txt. Nothing is
ever unpacked and names of members are never used as paths, so that a hostile archive can do no more than be skipped.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from dassl.data.loader import pins_memory
from dassl.data.seeding import item_seed, kept_generators, loader_seed, seed_generators
from dassl.utils import distributed
from dassl.utils.tools import to_rgb
from datasets.custom.options import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

MEMBER_LIMIT = 256 * 2**20  # bytes of the largest member that is read
MOST_SHARDS = 1_000_000  # that a pattern may name
SHOWN = 3  # damaged members that a message names


class Member(NamedTuple):
    """Raw bytes of an image and its caption, and where they stand."""

    where: str
    image: bytes
    text: bytes


class Damaged(NamedTuple):
    """Something that was skipped, and why."""

    where: str
    why: str


def find_shards(source: str) -> list[str]:
    """Paths of shards, sorted.

    Args:
        source: a folder of .tar files, one .tar file, or a pattern with numbers in braces ("cc3m/{00000..00331}.tar")
            or wildcards ("cc3m/*.tar").

    Raises:
        FileNotFoundError: nothing is there, or some of the numbered shards are missing.
        ValueError: numbers in braces that fall, or that are too many.
    """
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if numbers:
        first, last = numbers.groups()
        if int(first) > int(last):
            raise ValueError(f'the shards "{source}" count from {first} down to {last}, expected {{{last}..{first}}}')
        count = int(last) - int(first) + 1
        if count > MOST_SHARDS:
            raise ValueError(f'"{source}" names {count} shards, expected at most {MOST_SHARDS}')
        found, missing = [], []
        for number in range(int(first), int(last) + 1):
            found.append(f"{source[: numbers.start()]}{number:0{len(first)}d}{source[numbers.end() :]}")
            if not os.path.isfile(found[-1]):
                missing.append(found[-1])
                if len(missing) > 1000:
                    break
        if missing:
            some = f"{len(missing)} of {count}" if len(missing) <= 1000 else f"More than 1000 of {count}"
            raise FileNotFoundError(f'{some} shards of "{source}" are missing: {missing[:3]}')
        return found
    place = Path(source)
    if place.is_dir():
        found = [str(path) for path in place.glob("*.tar")]
    elif place.is_file():
        found = [source]
    else:
        found = [str(path) for path in place.parent.glob(place.name)]
    if not found:
        raise FileNotFoundError(
            f'there is no "{source}" (DATASET.PAIRS.SOURCE below DATASET.ROOT): expected a folder, a table (.csv, '
            ".tsv), a .tar file, or a pattern such as 'shards/{00000..00099}.tar' or 'shards/*.tar'"
        )
    return sorted(found)


def read_shard(path: str) -> Iterator[Member | Damaged]:
    """The pairs of an archive in its order, and what of it cannot be used.

    Raises:
        FileNotFoundError: there is no such file.
    """
    key = ""
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isfile():
                    if not member.isdir():
                        yield Damaged(f"{member.name!r} in {path}", "it is a link or device")
                    continue
                stem, suffix = _split_name(member.name)
                kind = "text" if suffix == ".txt" else "image" if suffix in IMAGE_SUFFIXES else ""
                if not kind:  # such as .json, and what a Mac puts before every member
                    continue
                if stem != key or kind in parts:
                    yield from _complete(key, parts, path)
                    key, parts = stem, {}
                if member.size > MEMBER_LIMIT:
                    yield Damaged(f"{member.name!r} in {path}", f"it has {member.size} bytes")
                    continue
                content = archive.extractfile(member)
                if content is not None:
                    parts[kind] = content.read()
        yield from _complete(key, parts, path)
    except FileNotFoundError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as err:  # of damaged archives
        yield Damaged(path, f"the rest of the shard cannot be read: {err}")


def _split_name(name: str) -> tuple[str, str]:
    """Name up to the first dot of its last part, and the suffix after it in small letters."""
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}/{stem}", (dot + suffix).lower()


def _complete(key: str, parts: dict[str, bytes], path: str) -> Iterator[Member | Damaged]:
    where = f"{key.lstrip('/')!r} in {path}"
    if len(parts) == 2:
        yield Member(where, parts["image"], parts["text"])
    elif parts:
        yield Damaged(where, f"it has no {'caption' if 'image' in parts else 'image'}")


def count_pairs(shards: Sequence[str]) -> int:
    """Pairs in all shards, from the headers of their members; the main process counts."""
    total = 0
    if distributed.is_main_process():
        logger.info("Counting the pairs of %d shards; DATASET.PAIRS.EPOCH_PAIRS spares this", len(shards))
        for path in shards:
            try:
                with tarfile.open(path) as archive:
                    names = [_split_name(member.name) for member in archive if member.isfile()]
            except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as err:
                logger.warning("%s is not counted: %s", path, err)
                continue
            texts = {stem for stem, suffix in names if suffix == ".txt"}
            total += len({stem for stem, suffix in names if suffix in IMAGE_SUFFIXES} & texts)
    return int(distributed.broadcast_object(total))


def decode(member: Member, transform: Callable[[Any], Any]) -> dict[str, Any] | Damaged:
    """Image and caption of a member as an item of a batch."""
    try:
        text = member.text.decode("utf-8-sig").strip()
        with Image.open(io.BytesIO(member.image)) as image:
            picture = to_rgb(image)
    # Pillow's decoders raise many kinds of errors for damaged files, decompression bombs among them.
    except Exception as err:  # noqa: BLE001
        why = "it is not an image file" if isinstance(err, UnidentifiedImageError) else f"it does not decode: {err}"
        return Damaged(member.where, why)
    if not text:
        return Damaged(member.where, "its caption is empty")
    return {"img": transform(picture), "text": text}


def shuffled(items: Iterator[Any], buffer: int, rng: random.Random) -> Iterator[Any]:
    """Every item once, each drawn from `buffer` that were read ahead."""
    held = list(itertools.islice(items, buffer))
    for item in items:
        place = rng.randrange(len(held))
        held[place], item = item, held[place]
        yield item
    rng.shuffle(held)
    yield from held


class _Batches(IterableDataset):
    """Samples that one worker of one process reads in an epoch: its share of the shards, repeated if needed."""

    def __init__(self, shards: Sequence[str], transform: Any, batch_size: int, buffer: int, limit: int) -> None:
        self.shards, self.transform = list(shards), transform
        self.batch_size, self.buffer, self.limit = batch_size, buffer, limit
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()  # workers cannot ask
        self.batches, self.seed = 0, 0  # of the epoch, set by the loader

    def __iter__(self) -> Iterator[tuple[dict[str, Any], list[Damaged]]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader, readers = self.rank * workers + number, self.world * workers
        own = len(range(number, self.batches, workers))  # torch asks worker after worker for a batch
        items: list[dict[str, Any]] = []
        damaged: list[Damaged] = []
        count = skipped = 0
        stream = self._members(reader, readers)
        while own > 0:
            item: Any = next(stream)
            if isinstance(item, Member):
                with kept_generators():
                    seed_generators(item_seed(item_seed(self.seed, reader), count))
                    item = decode(item, self.transform)
                count += 1
            if isinstance(item, Damaged):
                damaged.append(item)
                skipped += 1
                if skipped > self.limit:
                    own = 0
                    yield {}, damaged
                continue
            items.append(item)
            if len(items) == self.batch_size:
                yield default_collate(items), damaged
                items, damaged, own = [], [], own - 1

    def _members(self, reader: int, readers: int) -> Iterator[Member | Damaged]:
        """Members for one of all readers, without end; shards are dealt anew in every pass."""
        for turn in itertools.count():
            rng = random.Random(item_seed(self.seed, turn))  # the same for all readers
            shards = self.shards[:]
            rng.shuffle(shards)
            mine = shards[reader::readers] or [shards[reader % len(shards)]]  # with few shards several read one
            own = random.Random(item_seed(item_seed(self.seed, turn), reader))
            found = False
            for member in shuffled((m for shard in mine for m in read_shard(shard)), self.buffer, own):
                found = True
                yield member
            if not found:
                raise ValueError(f"{len(mine)} shards hold no pairs of an image and a .txt, such as {mine[0]}")


class ShardLoader:
    """Batches {img (B, 3, H, W), text: B captions} from shards.

    Shards are dealt to processes and their workers anew in every epoch, in an order that seed and epoch decide; so a
    run that is resumed after an epoch goes on exactly, if the numbers of processes and workers are the same. A reader
    whose shards are too few for its batches reads them again. An epoch has the same number of batches in every
    process: `total` pairs over all, less what does not fill a batch everywhere.

    Damaged members are skipped; their number is logged after the epoch.

    Args:
        cfg: batch size, workers, SEED and DATASET.PAIRS.
        shards: paths.
        transform: of the images.
        total: pairs of an epoch.

    Raises:
        ValueError: `total` is less than a batch in every process; when read, more than MAX_DAMAGED members of an epoch
            are damaged.
    """

    workers_matter = True  # members are dealt to them

    def __init__(self, cfg: Any, shards: Sequence[str], transform: Any, total: int) -> None:
        batch_size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.batches = total // (batch_size * distributed.get_world_size())
        if self.batches < 1:
            raise ValueError(
                f"an epoch of {total} pairs has no batch of {batch_size} for {distributed.get_world_size()} process(es)"
            )
        self.base, self.epoch = loader_seed(cfg.SEED), 0
        self.limit = cfg.DATASET.PAIRS.MAX_DAMAGED
        self.items = _Batches(shards, transform, batch_size, cfg.DATASET.PAIRS.BUFFER, self.limit)
        self.workers = min(cfg.DATALOADER.NUM_WORKERS, self.batches)
        self.pin = pins_memory(cfg)

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int, max_epoch: int) -> None:
        """Say which epoch (from 0) comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.items.batches, self.items.seed = self.batches, item_seed(self.base, self.epoch)
        # The generator is torch's own for the seeds of workers, so that the global one does not move.
        loader = DataLoader(
            self.items, batch_size=None, num_workers=self.workers, pin_memory=self.pin, generator=torch.Generator()
        )
        damaged: list[Damaged] = []
        for batch, found in loader:
            damaged += (Damaged(*entry) for entry in found)
            if len(damaged) > self.limit:
                raise ValueError(
                    f"{len(damaged)} members of the shards cannot be used in one epoch, more than "
                    f"DATASET.PAIRS.MAX_DAMAGED ({self.limit}), such as {_shown(damaged)}"
                )
            yield batch
        if damaged:
            logger.warning(
                "Epoch %d: skipped %d damaged members, such as %s", self.epoch + 1, len(damaged), _shown(damaged)
            )
        self.epoch += 1


def _shown(damaged: Sequence[Damaged]) -> str:
    return "; ".join(f"{entry.where} ({entry.why})" for entry in damaged[:SHOWN])
