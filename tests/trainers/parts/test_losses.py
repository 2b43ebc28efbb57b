"""Loss terms against plain loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from trainers.parts.losses import contrastive_loss, cosine_distance, cosine_logits, distillation_loss, mean_patch


def unit(*shape, generator):
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def contrastive_by_loops(image, text, scale, positive):
    """Cross-entropy with explicit sums over rows and columns."""
    similarity = [[scale * float(i @ t) for t in text] for i in image]
    total = 0.0
    for b, row in enumerate(similarity):
        log_norm = math.log(sum(math.exp(s) for s in row))
        partners = [k for k in range(len(text)) if positive[b][k]]
        total += sum(log_norm - row[k] for k in partners) / len(partners) / len(image) / 2
    for k in range(len(text)):
        column = [row[k] for row in similarity]
        log_norm = math.log(sum(math.exp(s) for s in column))
        partners = [b for b in range(len(image)) if positive[b][k]]
        total += sum(log_norm - column[b] for b in partners) / len(partners) / len(text) / 2
    return total


def equal(labels):
    label = torch.tensor(labels)
    return label[:, None] == label[None, :]


# The last one is not symmetric: caption 1 is true of images 0 and 1, caption 0 of image 0 alone.
ONE_WAY = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("positive", [torch.eye(4) > 0, equal([0, 0, 1, 1]), equal([5, 5, 5, 2]), ONE_WAY])
def test_contrastive_loss_equals_the_loops(rng, positive):
    image, text = unit(4, 8, generator=rng), unit(4, 8, generator=rng)
    found = contrastive_loss(image, text, torch.tensor(7.0), positive)
    assert float(found) == pytest.approx(contrastive_by_loops(image, text, 7.0, positive), rel=1e-5)


def test_the_identity_gives_the_loss_of_clip(rng):
    image, text, label = unit(5, 8, generator=rng), unit(5, 8, generator=rng), torch.arange(5)
    logits = 10 * image @ text.T
    expected = (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(10.0), torch.eye(5) > 0), expected)


def test_swapping_rows_and_columns_of_the_targets_is_another_loss(rng):
    image, text, scale = unit(4, 8, generator=rng), unit(4, 8, generator=rng), torch.tensor(5.0)
    difference = contrastive_loss(image, text, scale, ONE_WAY) - contrastive_loss(image, text, scale, ONE_WAY.T)
    assert abs(float(difference)) > 1e-3


def test_an_image_without_caption_is_refused(rng):
    image, text = unit(2, 8, generator=rng), unit(2, 8, generator=rng)
    with pytest.raises(ValueError, match="needs a partner"):
        contrastive_loss(image, text, torch.tensor(1.0), torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match=r"\(2, 3\), expected \(2, 2\)"):
        contrastive_loss(image, text, torch.tensor(1.0), torch.ones(2, 3) > 0)


def test_mean_patch_equals_the_loops(rng):
    """Directions are averaged, so that a long patch counts as much as a short one, and the class token is left out."""
    tokens = torch.randn(3, 5, 8, generator=rng) * torch.tensor([1.0, 1.0, 9.0, 0.1, 2.0])[:, None]
    for image, found in zip(tokens, mean_patch(tokens)):
        total = torch.zeros(8)
        for patch in image[1:]:
            total += patch / math.sqrt(sum(float(x) ** 2 for x in patch))
        torch.testing.assert_close(found, total / math.sqrt(sum(float(x) ** 2 for x in total)))


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 8)])
def test_mean_patch_needs_patches(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 1 \+ P, E\) with at least one patch"):
        mean_patch(torch.ones(shape))


def test_cosine_logits_ignore_the_length_of_features(rng):
    image, text = torch.randn(3, 8, generator=rng), torch.randn(4, 8, generator=rng)
    expected = torch.stack([torch.stack([F.cosine_similarity(i, t, dim=0) for t in text]) for i in image])
    torch.testing.assert_close(cosine_logits(5 * image, 0.1 * text, torch.tensor(100.0)), 100 * expected)


def test_cosine_distance_is_the_mean_over_rows(rng):
    x, y = torch.randn(5, 8, generator=rng), torch.randn(5, 8, generator=rng)
    expected = sum(1 - (a @ b) / (a.norm() * b.norm()) for a, b in zip(x, y)) / 5
    torch.testing.assert_close(cosine_distance(x, y), expected)
    assert float(cosine_distance(3 * x, x)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(-x, x)) == pytest.approx(2, abs=1e-6)


def test_cosine_logits_are_not_rounded_under_autocast(rng):
    image, text = torch.randn(4, 32, generator=rng), torch.randn(5, 32, generator=rng)
    expected = 100.0 * unit_rows(image) @ unit_rows(text).T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosine_logits(image, text, 100.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def unit_rows(x):
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def test_distillation_against_a_loop_over_images_and_classes(rng):
    logits, target = (3 * torch.randn(4, 5, generator=rng) for _ in range(2))
    total = 0.0
    for row, other in zip(logits.tolist(), target.tolist()):
        log_norm, norm = math.log(sum(math.exp(y / 2.5) for y in row)), sum(math.exp(y / 2.5) for y in other)
        total -= sum(math.exp(b / 2.5) / norm * (a / 2.5 - log_norm) for a, b in zip(row, other))
    assert float(distillation_loss(logits, target, 2.5)) == pytest.approx(2.5**2 * total / 4, rel=1e-5)
