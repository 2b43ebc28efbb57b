"""Masks of patches: exact numbers, seeds, and where the kept patches lie."""

import pytest
import torch

from trainers.parts.masking import MASKS, gather_tokens, keep_patches, left_out, mask_tokens


def frequency(kind: str, grid: tuple[int, int], ratio: float, rows: int = 1500) -> torch.Tensor:
    """Frequency of every place among the visible ones, relative to the mean, (height, width)."""
    patches = grid[0] * grid[1]
    keep = round((1 - ratio) * patches)
    chosen = keep_patches(kind, rows, grid, keep, torch.Generator().manual_seed(0))
    return torch.bincount(chosen.flatten(), minlength=patches).view(grid) / (rows * keep / patches)


def on_border(values: torch.Tensor) -> float:
    inner = torch.zeros_like(values, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    return float(values[~inner].mean())


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    ("grid", "keep"), [((8, 8), 1), ((8, 8), 32), ((3, 5), 7), ((2, 2), 3), ((14, 14), 118), ((8, 8), 64)]
)
def test_every_image_keeps_exactly_that_many(kind, grid, keep):
    chosen = keep_patches(kind, 20, grid, keep, torch.Generator().manual_seed(1))
    assert chosen.shape == (20, keep)
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < grid[0] * grid[1]
    assert bool((chosen.diff(dim=1) > 0).all())


@pytest.mark.parametrize("kind", MASKS)
def test_masks_follow_the_seed_and_the_global_generator(kind):
    one, same, other = (keep_patches(kind, 4, (8, 8), 30, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    state = torch.get_rng_state()  # what a resumed run restores
    drawn = [keep_patches(kind, 4, (8, 8), 30) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.set_rng_state(state)
    assert torch.equal(keep_patches(kind, 4, (8, 8), 30), drawn[0])
    assert torch.equal(keep_patches(kind, 4, (8, 8), 30), drawn[1])


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.75])
def test_reversed_masking_spreads_kept_patches_more_evenly(ratio):
    """Coefficient of variation over the places, and the border against the mean."""
    found = {kind: frequency(kind, (14, 14), ratio) for kind in MASKS}
    spread = {kind: float(value.std()) for kind, value in found.items()}
    assert spread["reversed"] < 0.08 < 0.28 < spread["block"]
    assert on_border(found["block"]) > 1.3  # kept patches are too often at the border
    assert on_border(found["reversed"]) == pytest.approx(1, abs=0.06)
    assert on_border(found["reversed_inside"]) < 0.6  # and here too seldom
    assert on_border(found["random"]) == pytest.approx(1, abs=0.06)


def test_blocks_are_blocks():
    """Kept patches of reversed masking touch each other far more than random ones, as masked ones of BEiT's do."""

    def neighbours(kind: str, masked: bool) -> float:
        chosen = keep_patches(kind, 300, (14, 14), 98, torch.Generator().manual_seed(0))
        grid = torch.zeros(300, 196).scatter_(1, chosen, 1.0).view(300, 14, 14)
        grid = 1 - grid if masked else grid
        return float((grid[:, 1:] * grid[:, :-1]).mean() + (grid[:, :, 1:] * grid[:, :, :-1]).mean())

    scattered = neighbours("random", False)
    assert neighbours("reversed", False) > 1.5 * scattered
    assert neighbours("reversed_inside", False) > 1.5 * scattered
    assert neighbours("block", True) > 1.5 * scattered


def test_gathering_masking_and_what_is_left_out():
    tokens = torch.arange(2 * 5, dtype=torch.float32).view(2, 5, 1).expand(-1, -1, 3)  # class token and 4 patches
    keep = torch.tensor([[0, 2], [1, 3]])
    assert gather_tokens(tokens, keep)[..., 0].tolist() == [[0, 1, 3], [5, 7, 9]]
    assert left_out(keep, 4).tolist() == [[1, 3], [0, 2]]
    positions = 100 * torch.arange(5.0)[:, None].expand(-1, 3)
    found = mask_tokens(tokens, keep, torch.full((3,), 0.5), positions)[..., 0]
    assert found.tolist() == [[0, 1, 200.5, 3, 400.5], [5, 100.5, 7, 300.5, 9]]


@pytest.mark.parametrize(
    ("kind", "keep", "message"),
    [("blocks", 3, "'blocks'.*reversed"), ("block", 0, "0 of 16"), ("random", 17, "17 of 16")],
)
def test_refused(kind, keep, message):
    with pytest.raises(ValueError, match=message):
        keep_patches(kind, 2, (4, 4), keep)
