"""A tiny CLIP for the tests of the trainers."""

import pytest
import torch

from clip import CLIP

VOCAB = 2048


@pytest.fixture(scope="module")
def tiny_clip() -> CLIP:
    torch.manual_seed(0)
    return (
        CLIP(
            embed_dim=32,
            image_resolution=32,
            vision_layers=4,
            vision_width=64,
            vision_patch_size=8,
            context_length=77,
            vocab_size=VOCAB,
            transformer_width=48,
            transformer_heads=2,
            transformer_layers=4,
        )
        .eval()
        .requires_grad_(False)
    )


@pytest.fixture
def names() -> list[str]:
    """Class names of one and of several tokens, with an underscore."""
    return ["cat", "golden_retriever", "Boeing 747-400", "yin_yang", "a"]


@pytest.fixture(scope="module")
def wide_clip() -> CLIP:
    """The widths of ViT-B/16's text tower and embedding (and its 12 text blocks), for counts of parameters."""
    return CLIP(
        embed_dim=512,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=16,
        context_length=77,
        vocab_size=VOCAB,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=12,
        transformer_mlp_width=8,
    ).requires_grad_(False)


@pytest.fixture
def images(rng):
    """Three random images of the size of `tiny_clip`."""
    return torch.randn(3, 3, 32, 32, generator=rng)
