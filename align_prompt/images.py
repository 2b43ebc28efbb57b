"""From whatever stands for a picture to the tensor that a model takes, read in parallel."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dassl.utils import read_image
from dassl.utils.tools import to_rgb

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ADDRESSES = ("http://", "https://", "ftp://", "s3://", "gs://", "data:")
AHEAD = 4  # pictures per reading thread that are read before they are asked for

Picture = Any  # str, Path, PIL image, array (H, W, 3) or tensor (3, H, W)
ERRORS = (OSError, ValueError, TypeError)  # what a picture that cannot be used raises


def as_pictures(images: Any) -> Iterable[Picture]:
    """One picture or several as pictures, one after the other; a batch of four axes is several."""
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return [images] if images.ndim < 4 else images
    return images


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path of a picture.

    Raises:
        ValueError: it is an address.
    """
    text = os.fspath(path)
    if text.lower().startswith(ADDRESSES):
        raise ValueError(f"{text[:80]!r} is an address, which is not fetched: download the picture and give its path")
    return Path(text)


def to_tensor(picture: Picture, transform: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Tensor:
    """(3, height, width) as the model takes it.

    Args:
        picture: path; PIL image; array (H, W), (H, W, 3) or tensor (3, H, W) of bytes, which are preprocessed; or a
            float tensor (3, *size) that is preprocessed already.
        transform: preprocessing of an RGB image.
        size: height and width that the model takes.

    Raises:
        FileNotFoundError, ValueError, TypeError: it cannot be used; the message says why.
    """
    if isinstance(picture, (str, os.PathLike)):
        return transform(read_image(check_path(picture)))
    if isinstance(picture, Tensor):
        if picture.is_floating_point():
            if tuple(picture.shape) != (3, *size):
                raise ValueError(
                    f"a float tensor is taken as preprocessed, so its shape must be {(3, *size)}, got "
                    f"{tuple(picture.shape)}; bytes (torch.uint8) of any size are preprocessed"
                )
            return picture.detach().float().cpu()
        picture = picture.detach().cpu().movedim(0, -1).numpy() if picture.ndim == 3 else picture.cpu().numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise ValueError(f"expected bytes (H, W) or (H, W, 3), got {picture.dtype} of shape {picture.shape}")
        picture = Image.fromarray(picture.squeeze(-1) if picture.shape[2:] == (1,) else picture)
    if not isinstance(picture, Image.Image):
        raise TypeError(f"a picture is a path, a PIL image, an array or a tensor, got {type(picture).__name__}")
    return transform(to_rgb(picture))


def name_of(picture: Picture, place: int) -> str:
    """Path of a picture, or its place among the pictures."""
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    return str(getattr(picture, "filename", "") or place)


def read_pictures(
    pictures: Iterable[Picture], transform: Callable[[Image.Image], Tensor], size: tuple[int, int], workers: int
) -> Iterator[tuple[str, Tensor | Exception]]:
    """(name, tensor or what was wrong) of every picture, in order, read by `workers` threads some pictures ahead."""

    def read(picture: Picture) -> Tensor | Exception:
        try:
            return to_tensor(picture, transform, size)
        except ERRORS as err:
            return err

    waiting: deque[tuple[str, Future]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for place, picture in enumerate(pictures):
            waiting.append((name_of(picture, place), pool.submit(read, picture)))
            if len(waiting) >= AHEAD * max(1, workers):
                name, future = waiting.popleft()
                yield name, future.result()
        while waiting:
            name, future = waiting.popleft()
            yield name, future.result()


def batches(rows: Iterable[tuple[str, Tensor | Exception]], size: int) -> Iterator[list[tuple[str, Any]]]:
    """Rows in lists of `size`, the last may be shorter."""
    batch: list[tuple[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def stacked(batch: list[tuple[str, Any]]) -> Tensor | None:
    """(B, 3, height, width) of the pictures of a batch that could be read; None if there are none."""
    good = [value for _, value in batch if isinstance(value, Tensor)]
    return torch.stack(good) if good else None
