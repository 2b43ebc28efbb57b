"""Whitened features are uncorrelated, and those of a random CLIP are apart."""

import pytest
import torch

import clip
from trainers.pretraining.whitening import whiten_projections, whitening


@pytest.mark.parametrize("out", [16, 24])
def test_whitened_features_are_uncorrelated_and_without_mean(rng, out):
    feature = torch.randn(4000, 16, generator=rng) @ torch.randn(16, 16, generator=rng) + 5
    white = feature @ whitening(feature, out, floor=1e-6)
    assert float(white.mean(dim=0).norm()) < 0.01 * float(white.norm(dim=1).mean())
    spectrum = torch.linalg.eigvalsh(torch.cov(white.T)).sort(descending=True).values[: min(out, 15)]
    assert float(spectrum.max() / spectrum[spectrum > 1e-6].min()) < 1.5


def test_whitening_separates_the_features_of_a_random_clip(rng):
    torch.manual_seed(0)
    model = clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2)
    image, ids = torch.randn(64, 3, 32, 32, generator=rng), torch.randint(1, 1500, (64, 6), generator=rng)
    ids[:, -1] = 2047

    def largest_mean_cosine():
        with torch.no_grad():
            features = [model.encode_image(image).pooled, model.encode_text(ids).pooled]
        return max(float(torch.nn.functional.normalize(f, dim=-1).mean(dim=0).norm()) for f in features)

    before = largest_mean_cosine()
    whiten_projections(model, image, ids)
    assert model.visual.proj.shape == (64, 24)
    assert model.text_projection.shape == (48, 24)
    assert before > 0.7 > 0.5 > largest_mean_cosine()
