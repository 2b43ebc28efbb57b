"""Loss terms against plain loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from trainers.losses import contrastive_loss, cosine_logits


def unit(*shape, generator):
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def contrastive_by_loops(image, text, scale, image_label, text_label):
    """Cross-entropy with explicit sums over rows and columns."""
    similarity = [[scale * float(i @ t) for t in text] for i in image]
    total = 0.0
    for b, row in enumerate(similarity):
        log_norm = math.log(sum(math.exp(s) for s in row))
        partners = [k for k in range(len(text)) if text_label[k] == image_label[b]]
        total += sum(log_norm - row[k] for k in partners) / len(partners) / len(image) / 2
    for k in range(len(text)):
        column = [row[k] for row in similarity]
        log_norm = math.log(sum(math.exp(s) for s in column))
        partners = [b for b in range(len(image)) if image_label[b] == text_label[k]]
        total += sum(log_norm - column[b] for b in partners) / len(partners) / len(text) / 2
    return total


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1, 1], [5, 5, 5, 2]])
def test_contrastive_loss_equals_the_loops(rng, labels):
    image, text, label = unit(4, 8, generator=rng), unit(4, 8, generator=rng), torch.tensor(labels)
    found = contrastive_loss(image, text, torch.tensor(7.0), label, label)
    assert float(found) == pytest.approx(contrastive_by_loops(image, text, 7.0, labels, labels), rel=1e-5)


def test_distinct_labels_give_the_loss_of_clip(rng):
    image, text, label = unit(5, 8, generator=rng), unit(5, 8, generator=rng), torch.arange(5)
    logits = 10 * image @ text.T
    expected = (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(10.0), label, label), expected)


def test_ignoring_equal_captions_is_another_loss(rng):
    image, text = unit(4, 8, generator=rng), unit(4, 8, generator=rng)
    shared, distinct = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    scale = torch.tensor(5.0)
    difference = contrastive_loss(image, text, scale, shared, shared) - contrastive_loss(
        image, text, scale, distinct, distinct
    )
    assert abs(float(difference)) > 1e-3


def test_a_label_without_partner_is_refused(rng):
    image, text = unit(2, 8, generator=rng), unit(2, 8, generator=rng)
    with pytest.raises(ValueError, match="every label"):
        contrastive_loss(image, text, torch.tensor(1.0), torch.tensor([0, 1]), torch.tensor([0, 2]))


def test_cosine_logits_ignore_the_length_of_features(rng):
    image, text = torch.randn(3, 8, generator=rng), torch.randn(4, 8, generator=rng)
    expected = torch.stack([torch.stack([F.cosine_similarity(i, t, dim=0) for t in text]) for i in image])
    torch.testing.assert_close(cosine_logits(5 * image, 0.1 * text, torch.tensor(100.0)), 100 * expected)
