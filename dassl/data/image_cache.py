"""Images that are decoded, and where possible resized, once: DATALOADER.CACHE.

What is kept are the pixels (uint8) of an image after the first steps of its transforms, as far as these are the same
for every view and not random: Resize and CenterCrop. Everything after them, all that is random included, is done for
every item as without a cache, from the same pixels, so that its tensors are the same to the last bit.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import multiprocessing
import os
import secrets
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torchvision
from PIL import Image, features
from torchvision import transforms as T

from dassl.utils.tools import read_image, user_cache

from . import transforms

__all__ = ["DiskImages", "Images", "RamImages", "open_images", "shared_start"]

logger = logging.getLogger(__name__)

_PIXEL_BYTES = 3  # RGB
_FORMAT = b"pixels-1"
_HEADER = struct.Struct("<8sII20s")  # format, width, height, digest
_LOCK_SECONDS = 5.0  # a lock is held for microseconds; one that is not let go belonged to a process that was killed
_KNOWN_MODULES = ("torchvision.transforms.transforms", "torchvision.transforms.autoaugment", transforms.__name__)


def shared_start(chains: Sequence[Any]) -> tuple[list[Any], list[Any]] | None:
    """The steps that all transforms begin with and that may be done once, and what is left of each transform.

    Returns:
        Resize and CenterCrop steps, perhaps none; then for each transform the rest. None if a transform is not made
        of steps of torchvision and this engine alone: one that is not known might use more of an image than its pixels,
        or change them in place.
    """
    lists = [_steps(chain) for chain in chains]
    if not lists or not all(_known(step) for steps in lists for step in steps):
        return None
    start: list[Any] = []
    for places in zip(*lists):
        if type(places[0]) not in (T.Resize, T.CenterCrop) or len({repr(step) for step in places}) > 1:
            break
        start.append(places[0])
    if not start:
        return start, list(chains)
    return start, [T.Compose(steps[len(start) :]) for steps in lists]


def _steps(chain: Any) -> list[Any]:
    return list(chain.transforms) if type(chain) is T.Compose else [chain]


def _known(step: Any) -> bool:
    if type(step).__module__ not in _KNOWN_MODULES or isinstance(step, T.Lambda):
        return False
    return all(_known(inner) for inner in getattr(step, "transforms", ()))


def open_images(cfg: Any, paths: Iterable[str], start: Sequence[Any]) -> Images:
    """Reader of the images of a split after the steps of `start`, with the cache of DATALOADER.CACHE.

    A cache that cannot be set up is replaced by reading every time, with a warning.
    """
    paths = list(dict.fromkeys(paths))
    size = _fixed_size(start)
    after = "; ".join(map(repr, start)) or "decoding"
    needed = "" if size is None else f", {len(paths) * size / 2**30:.2f} GiB"
    if cfg.DATALOADER.CACHE == "ram":
        limit = int(cfg.DATALOADER.CACHE_RAM_GIB * 2**30)
        try:
            kept = RamImages(paths, start, limit if size is None else min(limit, len(paths) * size))
        except OSError as err:
            logger.warning("No cache in memory (DATALOADER.CACHE ram): %s. Images are read every time", err)
            return Images(start)
        logger.info("Cache of %d images in memory after %s%s", len(paths), after, needed)
        return kept
    folder = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.CACHE_DIR))) if cfg.DATASET.CACHE_DIR else user_cache()
    images = DiskImages(start, folder / "pixels")
    logger.info("Cache of %d images in %s after %s%s", len(paths), images.folder, after, needed)
    images.check_place(0 if size is None else len(paths) * size)
    return images


def _fixed_size(start: Sequence[Any]) -> int | None:
    """Bytes of every image after `start`, None if that depends on the image."""
    size: Any = start[-1].size if start else None
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0] * size[1] * _PIXEL_BYTES
    return None


class Images:
    """Reads images: path -> RGB image after the steps of `start`, a new one at every call.

    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """

    def __init__(self, start: Sequence[Any] = ()):
        self.start = tuple(start)

    def __call__(self, path: str) -> Image.Image:
        image = read_image(path)
        for step in self.start:
            image = step(image)
        return image


class RamImages(Images):
    """Keeps pixels in memory that worker processes share with the process that made this, each image when first read.

    Workers must be forks, as they are on Linux; a process that gets a pickled copy starts with an empty cache.
    Images that no longer fit into the limit are read every time.

    Args:
        paths: of all images; others are read without being kept.
        limit: bytes of pixels; memory is taken as it fills.

    Raises:
        OSError: the system does not give so much memory.
    """

    def __init__(self, paths: Iterable[str], start: Sequence[Any], limit: int):
        super().__init__(start)
        self.limit = limit
        self.numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        self.memory = mmap.mmap(-1, max(limit, 1))  # anonymous and shared: forks see each other's writes
        table = mmap.mmap(-1, max(len(self.numbers), 1) * 16)
        self.table = np.frombuffer(table, dtype=np.int64).reshape(-1, 2)  # per image: place + 1, width << 32 | height
        self.used = np.frombuffer(mmap.mmap(-1, 16), dtype=np.int64)  # bytes given out; 1 once it was said to be full
        self.lock = multiprocessing.Lock()
        self.stuck = False  # a process died while holding the lock: the cache is off from then on

    def __reduce__(self) -> tuple[Any, ...]:
        return RamImages, (tuple(self.numbers), self.start, self.limit)

    def __call__(self, path: str) -> Image.Image:
        number = self.numbers.get(path)
        if number is None:
            return super().__call__(path)
        image = self._get(number)
        if image is None:
            image = super().__call__(path)
            self._put(number, image)
        return image

    def _get(self, number: int) -> Image.Image | None:
        if not self._locked():
            return None
        try:
            place, size = (int(value) for value in self.table[number])
        finally:
            self.lock.release()
        if place == 0:
            return None
        width, height = size >> 32, size & 0xFFFFFFFF
        content = self.memory[place - 1 : place - 1 + width * height * _PIXEL_BYTES]
        return Image.frombytes("RGB", (width, height), content)

    def _put(self, number: int, image: Image.Image) -> None:
        """Take a place, fill it, and only then say where it is."""
        if image.mode != "RGB" or not self._locked():
            return
        content = image.tobytes()
        try:
            place, full = (int(value) for value in self.used)
            fits = place + len(content) <= self.limit
            if fits:
                self.used[0] = place + len(content)
            else:
                self.used[1] = 1
        finally:
            self.lock.release()
        if fits:
            self.memory[place : place + len(content)] = content
            if self._locked():
                self.table[number] = place + 1, image.width << 32 | image.height
                self.lock.release()
        elif not full:
            logger.warning(
                "The cache of images is full at %.2f GiB (DATALOADER.CACHE_RAM_GIB): the others are read every time",
                self.limit / 2**30,
            )

    def _locked(self) -> bool:
        """Take the lock, which also makes what other processes have written visible here; False without it."""
        if not self.stuck:
            self.stuck = not self.lock.acquire(timeout=_LOCK_SECONDS)
        return not self.stuck


class DiskImages(Images):
    """Keeps pixels in files below `folder`, for later runs too, and for any number of processes at once.

    A file is named by a hash of the image's path, size and time of change, in a folder named by a hash of the steps of
    `start` and of the versions of what decodes and resizes. It is written beside its place and renamed, and carries a
    checksum of its pixels. A damaged one is made anew; when nothing can be written, images are read every time.
    """

    def __init__(self, start: Sequence[Any], folder: Path):
        super().__init__(start)
        codecs = [f"{name} {features.version(name)}" for name in ("jpg", "libjpeg_turbo", "zlib", "webp", "libtiff")]
        versions = [f"pillow {PIL.__version__}", f"torchvision {torchvision.__version__}", *codecs]
        key = "\n".join([_FORMAT.decode(), *map(repr, self.start), *versions])
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._set_flags()

    def _set_flags(self) -> None:
        self.flags = mmap.mmap(-1, 16)  # shared by forks: [0] nothing can be written, [1] damage was reported

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "flags"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_flags()

    def check_place(self, needed: int) -> None:
        """Say it now if the folder cannot be made, or has less than `needed` bytes of space and no images yet."""
        try:
            new = not self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as err:
            self._no_writing(err)
            return
        if new and needed > free:
            logger.warning(
                'the cache of images needs up to %.1f GiB, but "%s" has %.1f GiB of space; '
                "DATASET.CACHE_DIR chooses another folder",
                *(needed / 2**30, self.folder, free / 2**30),
            )

    def __call__(self, path: str) -> Image.Image:
        try:
            state = os.stat(path)
        except OSError:
            return super().__call__(path)  # says what is wrong
        key = f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}"
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        file = self.folder / name[:2] / name
        image = self._read(file)
        if image is None:
            image = super().__call__(path)
            if not self.flags[0]:
                self._write(file, image)
        return image

    def _read(self, file: Path) -> Image.Image | None:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            self._say_damaged(file, str(err.strerror))
            return None
        if len(content) >= _HEADER.size:
            mark, width, height, digest = _HEADER.unpack_from(content)
            pixels = memoryview(content)[_HEADER.size :]
            whole = mark == _FORMAT and len(pixels) == width * height * _PIXEL_BYTES
            if whole and digest == _digest(file.name, width, height, pixels):
                return Image.frombytes("RGB", (width, height), pixels)
        self._say_damaged(file, "the checksum is wrong")
        return None

    def _write(self, file: Path, image: Image.Image) -> None:
        if image.mode != "RGB":
            return
        pixels = image.tobytes()
        header = _HEADER.pack(_FORMAT, *image.size, _digest(file.name, *image.size, pixels))
        temporary = file.parent / f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as handle:  # not flushed to the disk: the checksum finds what a crash tore
                    handle.write(header)
                    handle.write(pixels)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as err:
            self._no_writing(err)

    def _no_writing(self, err: OSError) -> None:
        if not self.flags[0]:
            self.flags[0] = 1
            logger.warning(
                'the cache of images in "%s" cannot be written (%s): images that are not in it are read every time; '
                "DATASET.CACHE_DIR chooses another folder",
                *(self.folder, err.strerror or err),
            )

    def _say_damaged(self, file: Path, reason: str) -> None:
        if not self.flags[1]:
            self.flags[1] = 1
            logger.warning(
                '"%s" in the cache of images is damaged (%s) and made anew, as are others like it', file, reason
            )


def _digest(name: str, width: int, height: int, pixels: Any) -> bytes:
    digest = hashlib.blake2b(f"{name} {width} {height} ".encode(), digest_size=20)
    digest.update(pixels)
    return digest.digest()
