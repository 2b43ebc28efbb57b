"""Fixed pictures for evaluation: a drawing on a seeded background after a mild seeded affine change, as PNG files.

A picture depends on nothing but (concept, style, variant): the numbers come from a SHA-256 of the three, and all
arithmetic on pixels is on integers or on coefficients rounded to 1/4096.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from . import concepts, load_style, style_path

logger = logging.getLogger(__name__)

SIZE = 64
RECIPE = 1  # raised when `composite` changes, so that pictures on disk are made again
_MARKER = "COMPLETE.json"


def composite(art: np.ndarray, code: str, style: str, variant: int = 0) -> np.ndarray:
    """One picture.

    Args:
        art: (64, 64, 4) uint8 premultiplied RGBA drawing of the concept in the style.
        code: hex code of the concept.
        style: name of the style.
        variant: another background and change of the same drawing.

    Returns:
        (64, 64, 3) uint8 RGB.
    """
    digest = hashlib.sha256(f"{code}/{style}/{variant}".encode()).digest()
    u = np.frombuffer(digest, dtype=">u2").astype(np.int64)  # 16 numbers in [0, 65535]
    scale = 0.80 + 0.18 * u[0] / 65535
    angle = 0.14 * (u[1] / 32767.5 - 1)  # about 8 degrees either way
    room = (1 - scale) * SIZE / 2
    shift_x, shift_y = room * (u[2] / 32767.5 - 1), room * (u[3] / 32767.5 - 1)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle = SIZE / 2
    x, y = middle + shift_x, middle + shift_y
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    inverse = tuple(round(value * 4096) / 4096 for value in inverse)
    drawing = Image.frombytes("RGBa", (SIZE, SIZE), np.ascontiguousarray(art).tobytes())
    moved = np.array(drawing.transform((SIZE, SIZE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR))
    color, alpha = moved[..., :3].astype(np.int64), moved[..., 3:].astype(np.int64)
    paper = _paper(u[4:])
    return np.clip(color + (paper * (255 - alpha) + 127) // 255, 0, 255).astype(np.uint8)


def _paper(u: np.ndarray) -> np.ndarray:
    """Light background (64, 64, 3) int64: one colour, or a straight gradient between two.

    Every channel is at least 160, so that black line art stays visible.
    """
    first = 160 + u[0:3] * 95 // 65535
    if u[3] < 32768:
        return np.broadcast_to(first, (SIZE, SIZE, 3))
    second = 160 + u[4:7] * 95 // 65535
    along_x, along_y = int(u[7]) % 65 - 32, int(u[8]) % 65 - 32
    steps = np.arange(SIZE)
    ramp = along_x * steps[None, :] + along_y * steps[:, None]
    ramp = ramp - ramp.min()
    span = max(1, int(ramp.max()))
    return first + (second - first) * ramp[..., None] // span


def picture_path(folder: Path, style: str, code: str, variant: int = 0) -> Path:
    """File of one picture under the folder given to `write_style`."""
    return folder / style / f"{code}_{variant}.png"


def write_style(folder: Path, style: str, variants: int = 1) -> None:
    """Write every picture of a style below `folder`, unless they are there.

    A style appears at once, by renaming a finished folder; two processes may do this at the same time.

    Raises:
        OSError: the folder cannot be written.
    """
    target = folder / style
    expected = {
        "recipe": RECIPE,
        "variants": variants,
        "artwork": hashlib.sha256(style_path(style).read_bytes()).hexdigest(),
    }
    if _marker(target) == expected:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{style}.lock"):
            if _marker(target) == expected:
                return
            logger.info("Writing the pictures of style %s to %s", style, target)
            scratch = Path(tempfile.mkdtemp(prefix=f".{style}-", dir=folder))
            try:
                _write(scratch, style, variants)
                (scratch / _MARKER).write_text(json.dumps(expected), encoding="utf-8")
                scratch.chmod(0o755)
                if target.exists():
                    shutil.rmtree(target)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def root_folder(root: str, name: str) -> Path:
    """Absolute path of DATASET.ROOT, which need not exist yet.

    Raises:
        FileNotFoundError: it is not set.
    """
    if not root:
        raise FileNotFoundError(
            f"DATASET.ROOT is not set; {name} writes its pictures there. Set it with --root DIR, such as --root data"
        )
    return Path(os.path.abspath(os.path.expanduser(root)))


def cannot_write(folder: Path, error: OSError) -> OSError:
    """The error to raise when pictures cannot be written to a folder."""
    return OSError(
        f"cannot write pictures to {folder} ({error}); set DATASET.ROOT (--root) to a folder that can be written"
    )


def _marker(target: Path) -> dict | None:
    try:
        return json.loads((target / _MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _write(target: Path, style: str, variants: int) -> None:
    ids, images = load_style(style, premultiplied=True)
    for concept, art in zip(ids.tolist(), images):
        code = concepts()[concept].code
        for variant in range(variants):
            picture = Image.fromarray(composite(art, code, style, variant))
            picture.save(os.fspath(target / f"{code}_{variant}.png"), compress_level=1)
