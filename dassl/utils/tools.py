"""Small helpers under the names that Dassl users import."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import platform
import random
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from .files import read_json, write_json

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "environment",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "to_rgb",
    "tolist_if_not",
    "user_cache",
    "write_json",
]

logger = logging.getLogger(__name__)


def mkdir_if_missing(dirname: str | os.PathLike[str]) -> None:
    """Create a folder and its parents."""
    os.makedirs(dirname, exist_ok=True)


def user_cache() -> Path:
    """The project's folder in the user's cache folder; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")) / "align-prompt"


def check_isfile(fpath: str | os.PathLike[str]) -> bool:
    """True if `fpath` is a file; logs a warning if it is not."""
    found = os.path.isfile(fpath)
    if not found:
        logger.warning('No file found at "%s"', fpath)
    return found


def listdir_nohidden(path: str | os.PathLike[str], sort: bool = False) -> list[str]:
    """Names in a folder without those that start with a dot; in no particular order unless `sort`."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def set_random_seed(seed: int) -> None:
    """Seed Python's random, numpy's global generator, torch on the CPU and torch on every GPU.

    Raises:
        ValueError: the seed is not in [0, 2**32 - 1], the range that all four accept.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}, expected an integer in [0, {2**32 - 1}]")
    random.seed(seed)
    import numpy as np
    import torch

    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image and convert it to RGB, see `to_rgb`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded as an image, or its values have no known range.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f'No file exists at "{path}"')
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    # Pillow's decoders raise many kinds of errors for damaged files, so every one becomes the same clear message.
    except Exception as err:
        reason = "it is not an image file" if isinstance(err, PIL.UnidentifiedImageError) else str(err)
        raise ValueError(f'cannot decode the image "{path}": {reason}') from err


DEEP_MODES = {
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "16 bit, 65535 becomes 255"),
    "I": "16 or 32 bit, the largest value of the type becomes 255",
    "F": "floating point, 1.0 becomes 255",
}
"""Modes of Pillow with more than 8 bits per pixel, and their scale."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image with 8 bits per channel; deeper ones are scaled by the range of their type, as Pillow itself clips them.

    Raises:
        ValueError: floating-point values outside 0 to 1, negative integers, or 32 bit integers so small that all of
            them would become black.
    """
    if image.mode not in DEEP_MODES:
        return image.convert("RGB")
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            shown = f"{values.min():g} to {values.max():g}"
            raise ValueError(f"its pixels are floating-point numbers from {shown}, expected 0 to 1; scale them")
    else:
        # Pillow's "I" holds the 16 bits of a PNG or PPM file, and 32 bits of others.
        bits, top = (32, 2**31 - 1) if image.mode == "I" and image.format not in ("PNG", "PPM") else (16, 65535)
        if values.min() < 0 or (bits == 32 and 0 < values.max() < top / 255):
            raise ValueError(
                f"its pixels are {bits} bit integers from {values.min():.0f} to {values.max():.0f}, but 0 to {top} "
                "are black to white; scale them, or store it with 8 or 16 bits"
            )
        values = values / top
    _say_once(image.mode)
    return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")


@functools.cache
def _say_once(mode: str) -> None:
    logger.info("Images of mode %s are scaled to 8 bits: %s", mode, DEEP_MODES[mode])


def get_most_similar_str_to_a_from_b(a: str, b: Sequence[str]) -> str | None:
    """The string of `b` that looks most like `a` (ratio of matching characters, case ignored), None if `b` is empty."""
    if not b:
        return None
    ratios = [difflib.SequenceMatcher(None, a.lower(), name.lower()).ratio() for name in b]
    return b[ratios.index(max(ratios))]


def check_availability(requested: str, available: Sequence[str], key: str = "") -> None:
    """Check that a requested name, the value of the config's `key`, is one of the available ones.

    Raises:
        ValueError: it is not; the message lists the names and suggests the closest.
    """
    if requested not in available:
        similar = get_most_similar_str_to_a_from_b(requested, available) if requested else None
        hint = f" (do you mean {similar}?)" if similar else "" if available else " (nothing is registered)"
        raise ValueError(f"{key or 'the name'} is {requested!r}{hint}, expected one of {', '.join(sorted(available))}")


def tolist_if_not(x: Any) -> list[Any]:
    """`x` itself if it is a list, else a list with it as the only element."""
    return x if isinstance(x, list) else [x]


def download_url(url: str, dst: str | os.PathLike[str]) -> None:
    """Download `url` to the file `dst`; an interrupted download leaves no file at `dst`.

    Raises:
        OSError: the download failed (the message names both).
    """
    part = Path(f"{dst}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url) as answer, open(part, "wb") as file:
            shutil.copyfileobj(answer, file)
        os.replace(part, dst)
    except OSError as err:
        part.unlink(missing_ok=True)
        raise OSError(f'cannot download {url} to "{dst}": {err}') from err


def environment() -> dict[str, Any]:
    """Environment that results depend on besides the config: versions, processor, GPUs. Plain values, JSON-ready."""
    versions = {}
    for package in ("torch", "torchvision", "numpy", "pillow", "yacs", "safetensors", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions,
        "cuda_available": cuda,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
    }


def collect_env_info() -> str:
    """`environment()` as lines of text, for the log. Starts no other program."""
    lines: list[str] = []
    for name, value in environment().items():
        if isinstance(value, dict):
            lines.extend(f"{key}: {text}" for key, text in value.items())
        else:
            lines.append(f"{name}: {', '.join(value) or 'none' if isinstance(value, list) else value}")
    return "\n".join(lines)
