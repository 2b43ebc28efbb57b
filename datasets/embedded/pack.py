"""The packed file of one style: palette images of 64 x 64 pixels, compressed together.

Layout inside one .xz stream (little endian): 8 bytes magic; uint32 number of images n; n uint16 concept ids; n uint16
palette sizes; the palettes, each as four planes (R, G, B, A, premultiplied); n * 4096 palette indices. The same images
give the same bytes.
"""

import lzma
from pathlib import Path

import numpy as np

SIZE = 64
COLORS = 256
MAGIC = b"EMOJIS64"
_LLOYD_STEPS = 2
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def premultiply(images: np.ndarray) -> np.ndarray:
    """Straight RGBA uint8 (..., 4) -> premultiplied RGBA uint8."""
    wide = images.astype(np.uint16)
    alpha = wide[..., 3:]
    return np.concatenate([(wide[..., :3] * alpha + 127) // 255, alpha], -1).astype(np.uint8)


def unpremultiply(images: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA uint8 (..., 4) -> straight RGBA uint8; wholly transparent pixels become 0."""
    wide = images.astype(np.uint32)
    alpha = np.maximum(wide[..., 3:], 1)
    color = np.minimum((wide[..., :3] * 255 + alpha // 2) // alpha, 255)
    return np.concatenate([color * (wide[..., 3:] > 0), wide[..., 3:]], -1).astype(np.uint8)


def encode(concepts: np.ndarray, images: np.ndarray) -> bytes:
    """Bytes of a packed file.

    Args:
        concepts: (n,) concept ids, below 65,536.
        images: (n, 64, 64, 4) uint8 straight RGBA; reduced to at most 256 colours each.

    Raises:
        ValueError: shapes do not fit together.
    """
    if images.shape != (len(concepts), SIZE, SIZE, 4):
        raise ValueError(f"images of {len(concepts)} concepts must be (n, {SIZE}, {SIZE}, 4), got {images.shape}")
    reduced = [_reduce(image) for image in premultiply(images)]
    header = MAGIC + np.uint32(len(concepts)).tobytes() + concepts.astype("<u2").tobytes()
    sizes = np.array([len(palette) for palette, _ in reduced], dtype="<u2").tobytes()
    palettes = b"".join(palette.T.tobytes() for palette, _ in reduced)
    indices = b"".join(index.tobytes() for _, index in reduced)
    return lzma.compress(header + sizes + palettes + indices, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_FILTERS)


def _reduce(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Palette (k, 4) uint8, dark to light, and indices (4096,) uint8 of one premultiplied image.

    Every number below is an integer under 2^24 held exactly by float32, so the result is the same on every machine.
    """
    codes, inverse, counts = np.unique(
        image.reshape(-1, 4).view("<u4").ravel(), return_inverse=True, return_counts=True
    )
    colors = codes.astype("<u4").view(np.uint8).reshape(-1, 4)
    palette, nearest = colors, np.arange(len(colors))
    if len(colors) > COLORS:
        palette, nearest = _lloyd(colors, counts, _initial_palette(image))
    order = np.argsort(palette.astype(np.int64).sum(1), kind="stable")
    rank = np.empty(len(order), dtype=np.uint8)
    rank[order] = np.arange(len(order))
    return palette[order], rank[nearest][inverse.reshape(-1)]


def _initial_palette(image: np.ndarray) -> np.ndarray:
    from PIL import Image  # only the builder reduces colours

    reduced = Image.fromarray(image, "RGBA").quantize(
        COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    return np.unique(np.array(reduced.convert("RGBA")).reshape(-1, 4), axis=0)


def _lloyd(colors: np.ndarray, counts: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K-means of weighted colours (m, 4) from an initial palette -> palette (k, 4) uint8, nearest entry (m,)."""
    points, weights = colors.astype(np.float32), counts.astype(np.int64)
    centres = palette.astype(np.float32)
    for step in range(_LLOYD_STEPS + 1):
        nearest = ((centres * centres).sum(1) - 2 * points @ centres.T).argmin(1)
        kept, nearest = np.unique(nearest, return_inverse=True)
        nearest = nearest.reshape(-1)
        if step == _LLOYD_STEPS:
            return centres[kept].astype(np.uint8), nearest
        mass = np.bincount(nearest, weights=weights)[:, None]
        total = np.stack([np.bincount(nearest, weights=weights * colors[:, c]) for c in range(4)], 1)
        centres = np.floor(total / mass + 0.5).astype(np.float32)
    raise AssertionError("unreachable")


def read_concepts(path: Path) -> np.ndarray:
    """Concept ids (n,) int64 of a packed file, without its images. Raises as `decode`."""
    try:
        with lzma.open(path) as stream:
            n = _images(stream.read(12), path)
            return np.frombuffer(stream.read(2 * n), "<u2").astype(np.int64)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path} is not a packed style ({error}); restore it from the repository") from error


def _images(header: bytes, path: Path) -> int:
    if header[:8] != MAGIC:
        raise ValueError(f"{path} is not a packed style (starts with {header[:8]!r}); restore it from the repository")
    return int(np.frombuffer(header, "<u4", 1, 8)[0])


def decode(path: Path, premultiplied: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Concept ids (n,) int64 and RGBA images (n, 64, 64, 4) uint8 of a packed file.

    Raises:
        ValueError: the file is not a packed style.
    """
    try:
        raw = lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise ValueError(f"{path} is not a packed style ({error}); restore it from the repository") from error
    n = _images(raw, path)
    concepts = np.frombuffer(raw, "<u2", n, 12)
    sizes = np.frombuffer(raw, "<u2", n, 12 + 2 * n)
    start = 12 + 4 * n
    palettes = np.zeros((n, COLORS, 4), dtype=np.uint8)
    for row, size in enumerate(sizes.tolist()):
        palettes[row, :size] = np.frombuffer(raw, np.uint8, 4 * size, start).reshape(4, size).T
        start += 4 * size
    if not premultiplied:
        palettes = unpremultiply(palettes)
    indices = np.frombuffer(raw, np.uint8, n * SIZE * SIZE, start).reshape(n, SIZE * SIZE)
    pixels = palettes.view("<u4")[..., 0]  # (n, 256): one word per colour
    images = np.take_along_axis(pixels, indices.astype(np.intp), axis=1)
    return concepts.astype(np.int64), images.view(np.uint8).reshape(n, SIZE, SIZE, 4)
