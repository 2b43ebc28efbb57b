"""Features of a frozen image tower, kept on disk from one evaluation to the next.

A file of safetensors holds the features of K images in order: "pooled" (K, E), and "tokens" (K, L, E) for methods that
read local features. Its name is the hash of everything the features depend on, which stands in its metadata too. It is
written row by row while the images are encoded for an evaluation anyway, and read through a memory map.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clip import Encoded
from trainers.parts import engine

logger = logging.getLogger(__name__)

VERSION = 1
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # their names in the file


def state_hash(module: nn.Module) -> str:
    """First 16 hex digits of the sha256 over names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def structure_hash(module: nn.Module) -> str:
    """Hash of what a module's weights do not say: kinds, numbers and switches of all its parts."""
    parts = []
    for name, part in module.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, (int, float, str, tuple))}
        del settings["training"]
        parts.append(f"{name} {type(part).__qualname__} {sorted(settings.items())}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def why_not(loader: Any, transform: Any) -> str:
    """Reason why features of a loader's images cannot be cached; "" if they can.

    Args:
        transform: of the evaluation; a random one gives another image every time.
    """
    wrapper = getattr(getattr(loader, "dataset", None), "dataset", None)
    if not isinstance(loader, engine.SeededLoader) or type(wrapper) is not engine.DatasetWrapper:
        return "the images come from the method's own loader"
    if wrapper.transform is not transform or loader.order_generator is not None:
        return "the images are augmented"
    if not isinstance(loader.order_sampler, engine.SequentialSampler):
        return "the images are not read in order"
    if " at 0x" in engine.transform_repr(transform):
        return "the test transform does not say what it does"
    return ""


def description(loader: engine.SeededLoader, root: str, tokens: bool, tower: nn.Module, how: str) -> dict[str, Any]:
    """All that decides about the features of a loader's images, as plain values.

    The size of the batches is among it: another one may change the last digits.

    Args:
        root: folder that the paths of the images are taken relative to.
        tokens: local features are kept too.
        tower: the image tower, as it is now.
        how: precision and device.

    Raises:
        OSError: an image is not there.
    """
    wrapper: Any = loader.dataset
    return {
        "version": VERSION,
        "images": engine.files_hash(wrapper.data_source, root),
        "count": len(wrapper.data_source),
        "transform": engine.transform_repr(wrapper.transform),
        "batch": loader.batch_size,
        "tower": f"{state_hash(tower)} {structure_hash(tower)}",
        "how": how,
        "torch": torch.__version__,
        "features": ["pooled", "tokens"] if tokens else ["pooled"],
    }


class FeatureFile:
    """The file of one `description`.

    Args:
        folder: DATASET.CACHE_DIR, whose subfolder `features` is used; "" for that of the user's cache folder.
    """

    def __init__(self, folder: str, key: Mapping[str, Any]):
        self.key = json.dumps(key, sort_keys=True)
        self.names: tuple[str, ...] = tuple(key["features"])
        self.count: int = key["count"]
        parent = Path(folder).expanduser().absolute() if folder else engine.user_cache()
        self.path = parent / "features" / f"{hashlib.sha256(self.key.encode()).hexdigest()[:20]}.safetensors"

    def read(self) -> dict[str, Tensor] | None:
        """The features, mapped into memory; None if there are none, or none that can be trusted."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key or set(file.keys()) != set(self.names):
                    raise ValueError("it is of other images")
                found = {name: file.get_tensor(name) for name in self.names}
            if any(len(value) != self.count for value in found.values()):
                raise ValueError(f"it does not have {self.count} rows")
            if metadata.get("sums") != _shown({name: zlib.crc32(_bytes(value)) for name, value in found.items()}):
                raise ValueError("its checksum differs")
        except (OSError, ValueError, SafetensorError) as err:
            logger.warning("The image features in %s are made again, the file is damaged: %s", self.path, err)
            return None
        return found

    def writer(self) -> FeatureWriter | None:
        """Folder for the features; None, with a line of log, if that is impossible or another process writes them."""
        lock = filelock.FileLock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("Another process writes %s; this evaluation goes on without it", self.path)
        except (OSError, NotImplementedError) as err:  # the latter from file systems without locks
            logger.warning("Image features are not kept: %s", err)
        else:
            return FeatureWriter(self, lock)
        return None


class FeatureWriter:
    """Rows of features on their way into a file, which appears when all are there. Whatever fails ends only that."""

    def __init__(self, target: FeatureFile, lock: filelock.BaseFileLock):
        self.target, self.lock = target, lock
        self.temporary = target.path.with_suffix(".tmp")
        self.file: BinaryIO | None = None
        self.rows = 0
        self.sums = dict.fromkeys(target.names, 0)
        self.entries: dict[str, dict[str, Any]] = {}  # of each tensor, as they stand in the header
        self.places: dict[str, tuple[int, int]] = {}  # of each tensor: where its rows start, bytes of a row
        self.alive = True

    def put(self, index: Tensor, encoded: Encoded) -> None:
        """Append the features of the images with these numbers, which must follow those before."""
        if not self.alive:
            return
        values = {name: getattr(encoded, name).detach().cpu().contiguous() for name in self.target.names}
        try:
            if index.tolist() != list(range(self.rows, self.rows + len(index))):
                raise ValueError("the images do not come in order")
            if self.file is None:
                self._open(values)
            assert self.file is not None
            for name, value in values.items():
                start, size = self.places[name]
                data = _bytes(value)
                if len(data) != size * len(index):
                    raise ValueError(f"the {name} features of image {self.rows} have another shape")
                self.file.seek(start + size * self.rows)
                self.file.write(data)
                self.sums[name] = zlib.crc32(data, self.sums[name])
            self.rows += len(index)
        except (OSError, ValueError, KeyError) as err:
            self._give_up(err)

    def finish(self) -> None:
        """Put the file in its place if every image is in it."""
        if not self.alive or self.file is None or self.rows != self.target.count:
            return
        try:
            self.file.seek(0)
            self.file.write(self._header())
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.temporary, self.target.path)
            logger.info("Image features are kept in %s", self.target.path)
        except OSError as err:
            self._give_up(err)

    def close(self) -> None:
        """Remove what is not finished and let others write."""
        with contextlib.suppress(OSError):  # on a full disk closing writes what is left, and fails
            if self.file is not None:
                self.file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        self.lock.release()

    def _open(self, values: Mapping[str, Tensor]) -> None:
        start = 0
        for name, value in values.items():
            row = value[0].numel() * value.element_size()
            self.entries[name] = {
                "dtype": DTYPES[value.dtype],
                "shape": [self.target.count, *value.shape[1:]],
                "data_offsets": [start, start + row * self.target.count],
            }
            start += row * self.target.count
        beginning = len(self._header())
        for name in values:
            first, end = self.entries[name]["data_offsets"]
            self.places[name] = (beginning + first, (end - first) // self.target.count)
        self.file = open(self.temporary, "wb")  # noqa: SIM115 - a process that was killed may have left one
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, beginning + start)  # a full disk says so here

    def _header(self) -> bytes:
        """The beginning of a file of safetensors, as long before the sums are known as after."""
        content = {"__metadata__": {"key": self.target.key, "sums": _shown(self.sums)}, **self.entries}
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _give_up(self, err: Exception) -> None:
        logger.warning("Image features are not kept: %s", err)
        self.alive = False


class FeatureBatches:
    """The batches of an evaluation loader with encoded images in the place of images.

    They come from the file if it has them (`stored` says so then), else from `encode`, and go into the file.

    Args:
        loader: of an evaluation.
        encode: images (B, 3, H, W) of a batch -> features.
        file: None keeps nothing.
        device: of the features.
        tokens: the tokens are given too. Otherwise nothing can be computed with them, so that a score that reads them
            without saying so fails at once.
    """

    def __init__(
        self,
        loader: Any,
        encode: Callable[[Tensor], Encoded],
        file: FeatureFile | None,
        device: torch.device,
        tokens: bool = False,
    ):
        self.loader, self.encode, self.file, self.device, self.tokens = loader, encode, file, device, tokens
        self.stored = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        known = None if self.file is None else self.file.read()
        self.stored = known is not None
        return self._encoded() if known is None else self._read(known)

    def _read(self, known: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        items = self.loader.dataset.data_source
        mine = torch.arange(engine.distributed.get_rank(), len(items), engine.distributed.get_world_size())
        for index in mine.split(self.loader.batch_size):
            rows = {name: value[index].to(self.device) for name, value in known.items()}
            chosen = [items[i] for i in index.tolist()]
            yield {
                "img": self._given(rows["pooled"], rows.get("tokens")),
                "label": torch.tensor([item.label for item in chosen]),
                "impath": [item.impath for item in chosen],
                "index": index,
            }

    def _encoded(self) -> Iterator[dict[str, Any]]:
        alone = engine.distributed.get_world_size() == 1
        writer = self.file.writer() if self.file is not None and alone else None
        try:
            for batch in engine.prefetched(self.loader, self.device):
                encoded = self.encode(batch["img"].to(self.device))
                if writer is not None:
                    writer.put(batch["index"], encoded)
                yield {**batch, "img": self._given(*encoded)}
            if writer is not None:
                writer.finish()
        finally:
            if writer is not None:
                writer.close()

    def _given(self, pooled: Tensor, tokens: Tensor | None) -> Encoded:
        if tokens is None or not self.tokens:
            tokens = torch.empty(len(pooled), 0, pooled.shape[-1], dtype=pooled.dtype, device="meta")
        return Encoded(pooled, tokens)


def _bytes(value: Tensor) -> memoryview:
    array: Any = value.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _shown(sums: Mapping[str, int]) -> str:
    return " ".join(f"{name} {value:08x}" for name, value in sorted(sums.items()))
