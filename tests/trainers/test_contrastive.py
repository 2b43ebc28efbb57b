"""Parts of contrastive pre-training: patch dropping, whitening, parameter groups."""

import pytest
import torch

import clip
from trainers.contrastive import TwoTowers, keep_random_patches, whiten_projections, whitening


def test_dropped_patches_keep_the_class_token_and_the_order(rng):
    tokens = torch.arange(2 * 17, dtype=torch.float32).reshape(2, 17, 1).expand(-1, -1, 3)
    kept, numbers = keep_random_patches(tokens, 5, rng)
    assert kept.shape == (2, 6, 3)
    assert torch.equal(kept[:, 1:, 0], torch.stack([tokens[b, 1 + numbers[b], 0] for b in range(2)]))
    assert torch.equal(kept[:, 0], tokens[:, 0])
    assert bool((kept[:, 1:, 0].diff(dim=1) > 0).all())  # original order, no repeats
    assert not torch.equal(kept[0, 1:, 0], kept[1, 1:, 0] - 17)  # every image keeps its own patches


def test_every_patch_is_kept_equally_often(rng):
    tokens = torch.arange(9.0).reshape(1, 9, 1).expand(4000, -1, -1)
    counts = torch.bincount(keep_random_patches(tokens, 4, rng)[0][:, 1:, 0].long().flatten(), minlength=9)[1:]
    assert float((counts / 4000 - 0.5).abs().max()) < 0.05


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


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_chunks_change_neither_features_nor_gradients(rng, share):
    """Against plain passes over the same parts, whose patches are drawn alike."""
    torch.manual_seed(0)
    model = clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2)
    image, ids = torch.randn(5, 3, 32, 32, generator=rng), torch.randint(1, 1500, (5, 6), generator=rng)
    ids[:, -1] = 2047
    weight = torch.randn(2, 5, 24, generator=rng)
    whole, chunks = TwoTowers(model), TwoTowers(model, chunk=2)
    parts = [slice(0, 5)] if share == 1 else [slice(0, 2), slice(2, 4), slice(4, 5)]

    def plain():
        return (torch.cat(column) for column in zip(*(whole(image[part], ids[part], share)[:2] for part in parts)))

    found = []
    for features in (plain, lambda: chunks(image, ids, share)[:2]):
        model.zero_grad()
        torch.manual_seed(1)
        pair = torch.stack(tuple(features()))
        (pair * weight).sum().backward()
        found.append([pair.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 20
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
