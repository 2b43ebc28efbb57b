"""Masks of image patches, and sequences of the visible ones.

Every function gives the same number of patches for every image, so that a batch stays one tensor.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Tensor

MASKS = ("reversed", "reversed_inside", "block", "random")
"""Kinds of masks, by the patches that stay visible.

- reversed: the patches of blocks (UTA), which may hang over the edge, so that every place is kept about as often;
- reversed_inside: the patches of blocks that lie inside the grid, as BEiT draws them, which favours the centre;
- block: the patches outside of such blocks (BEiT), which favours the border;
- random: any patches.
"""
SMALLEST_BLOCK = 4
"""Patches of the smallest block that is tried."""
ASPECT = 0.3
"""Blocks have sides h / w in [ASPECT, 1 / ASPECT], uniform in the logarithm."""
ATTEMPTS = 10
"""Blocks tried before the rest is filled with single patches."""


def select_blocks(height: int, width: int, count: int, rng: random.Random, overhang: bool = False) -> np.ndarray:
    """A mask of rectangles that covers exactly `count` places of a grid, (height, width) bool.

    BEiT's generator (Bao et al. 2022, Algorithm 1): rectangles of an area between SMALLEST_BLOCK and what is missing
    may overlap; one that would add nothing or too much is drawn again. Where no rectangle fits any more, single random
    places complete the number.

    Args:
        height, width: sides of the grid.
        count: places to cover, 0 to height * width.
        rng: source of all draws.
        overhang: rectangles have their place anywhere they touch the grid and are cut off at its edge, so that each
            covers all places with the same probability; false = they lie inside, as BEiT's do.
    """
    mask = np.zeros((height, width), dtype=bool)
    missing = count
    while missing > 0:
        added = _add_block(mask, missing, rng, overhang)
        if added == 0:
            free = np.flatnonzero(~mask)
            mask.flat[rng.sample(free.tolist(), missing)] = True
            break
        missing -= added
    return mask


def _add_block(mask: np.ndarray, most: int, rng: random.Random, overhang: bool) -> int:
    """Cover one more rectangle of at most `most` free places; how many were free, 0 if none was found."""
    height, width = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(SMALLEST_BLOCK, most)
        aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < h < height and 0 < w < width):
            continue
        if overhang:
            top, left = rng.randint(1 - h, height - 1), rng.randint(1 - w, width - 1)
        else:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        block = mask[max(0, top) : top + h, max(0, left) : left + w]
        free = block.size - int(np.count_nonzero(block))
        if 0 < free <= most:
            block[:] = True
            return free
    return 0


def keep_patches(
    kind: str, rows: int, grid: tuple[int, int], keep: int, generator: torch.Generator | None = None
) -> Tensor:
    """Numbers of the patches that each image keeps.

    Args:
        kind: one of MASKS.
        rows: number of images.
        grid: patches per column and per row; patch (y, x) has the number y * grid[1] + x.
        keep: patches kept per image.
        generator: on the CPU; torch's global one when None, so that a resumed run goes on with the same masks.

    Returns:
        (rows, keep) int64, increasing in every row.

    Raises:
        ValueError: an unknown kind, or a number of patches the grid does not have.
    """
    patches = grid[0] * grid[1]
    if kind not in MASKS:
        raise ValueError(f"the masking is {kind!r}, expected one of {', '.join(MASKS)}")
    if not 1 <= keep <= patches:
        raise ValueError(f"{keep} of {patches} patches are to be kept, expected 1 to {patches}")
    if kind == "random":
        chosen = torch.rand(rows, patches, generator=generator).topk(keep, dim=1).indices
        return chosen.sort(dim=1).values
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    if kind in ("reversed", "reversed_inside"):
        masks = [select_blocks(*grid, keep, rng, overhang=kind == "reversed") for _ in range(rows)]
    else:
        masks = [~select_blocks(*grid, patches - keep, rng) for _ in range(rows)]
    return torch.from_numpy(np.stack(masks)).flatten(1).nonzero()[:, 1].view(rows, keep)


def gather_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """Class token and kept patches: (B, 1 + P, d) and (B, K) patch numbers -> (B, 1 + K, d)."""
    index = torch.cat([keep.new_zeros(len(keep), 1), keep + 1], dim=1)
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))


def mask_tokens(tokens: Tensor, keep: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Puts one vector, with the position of each place, where patches are not kept.

    Args:
        tokens: (B, 1 + P, d) class token and patches with their positions.
        keep: (B, K) numbers of the patches that stay.
        mask: (d,) the mask token.
        positions: (1 + P, d), or with an axis of size 1 before them.

    Returns:
        (B, 1 + P, d).
    """
    stays = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    stays[:, 0] = True
    stays.scatter_(1, keep + 1, True)
    return torch.where(stays[:, :, None], tokens, (mask + positions).to(tokens.dtype))


def left_out(keep: Tensor, patches: int) -> Tensor:
    """Numbers of the patches that are not kept: (B, K) -> (B, P - K), increasing in every row."""
    free = torch.ones(len(keep), patches, dtype=torch.bool, device=keep.device).scatter_(1, keep, False)
    return free.int().argsort(dim=1, descending=True, stable=True)[:, : patches - keep.shape[1]]  # no wait for a device
