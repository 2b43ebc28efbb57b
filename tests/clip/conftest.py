"""A tiny CLIP and inputs for it."""

import pytest
import torch
from clip_reference import HEADS, LAYERS, VOCAB, WIDTH, randomised

import clip


@pytest.fixture
def make_clip():
    def make(seed=0, **changes):
        numbers = {
            "embed_dim": 32,
            "image_resolution": 32,
            "vision_layers": LAYERS,
            "vision_width": WIDTH,
            "vision_patch_size": 8,
            "context_length": 24,
            "vocab_size": VOCAB,
            "transformer_width": WIDTH,
            "transformer_heads": HEADS,
            "transformer_layers": LAYERS,
            "vision_heads": HEADS,
        }
        return randomised(clip.CLIP(**(numbers | changes)), seed).eval()

    return make


@pytest.fixture
def tiny(make_clip):
    return make_clip()


@pytest.fixture
def tiny_resnet(make_clip):
    return make_clip(vision_layers=(1, 2, 1, 1), vision_width=8, vision_patch_size=None, image_resolution=64)


@pytest.fixture
def images(rng):
    return torch.randn(3, 3, 32, 32, generator=rng)


@pytest.fixture
def ids():
    """Three sentences with three places for prompts after the start token, end tokens at different positions."""
    texts = ["X X X a cat.", "X X X a very big zebra", "X X X the dog of my neighbour's aunt"]
    return clip.tokenize(texts, context_length=24, vocab_size=VOCAB)
