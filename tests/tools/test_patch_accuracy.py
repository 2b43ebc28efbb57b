"""Accuracy by patches: against plain loops, and the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

import clip
from clip import Encoded
from tools import patch_accuracy
from tools.patch_accuracy import Accuracy, draw_curve, main, mean_cosine, measure, patch_scores


def test_scores_equal_the_loops(rng):
    image = Encoded(torch.randn(2, 8, generator=rng), torch.randn(2, 5, 8, generator=rng))
    text = torch.randn(3, 8, generator=rng)
    by_class, by_mean, by_best = patch_scores(image, text)
    for b in range(2):
        for c in range(3):
            cosines = [cosine_similarity(patch, text[c], dim=0) for patch in image.tokens[b, 1:]]
            torch.testing.assert_close(by_class[b, c], cosine_similarity(image.pooled[b], text[c], dim=0))
            torch.testing.assert_close(by_mean[b, c], sum(cosines) / 4)
            torch.testing.assert_close(by_best[b, c], max(cosines))


def test_cosine_between_patches_equals_the_loops(rng):
    patches = torch.randn(2, 4, 8, generator=rng)
    for image, found in zip(patches, mean_cosine(patches)):
        pairs = [cosine_similarity(image[i], image[j], dim=0) for i in range(4) for j in range(4) if i != j]
        torch.testing.assert_close(found, sum(pairs) / 12)
    torch.testing.assert_close(mean_cosine(patches[:, :1].expand(-1, 4, -1)), torch.ones(2))


@pytest.fixture
def small(rng, tmp_path):
    """A model, its transform, and a data set of 7 random pictures."""
    torch.manual_seed(0)
    model = clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2).eval().requires_grad_(False)
    items = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.fromarray(torch.randint(256, (32, 32, 3), generator=rng).numpy().astype(np.uint8)).save(path)
        items.append(SimpleNamespace(impath=str(path), label=number % 3))
    dataset = SimpleNamespace(classnames=["cat", "dog", "bird"], template="a {}.", test=items, val=items[:2])
    return model, clip.api.preprocessing(32), dataset


def test_accuracy_over_batches_is_that_of_single_images(small, monkeypatch):
    model, preprocess, dataset = small
    monkeypatch.setattr(patch_accuracy, "BATCH", 3)
    text = model.encode_text(clip.tokenize(["a cat.", "a dog.", "a bird."], vocab_size=2048)).pooled
    right, cosine = [0, 0, 0], 0.0
    for item in dataset.test:
        image = model.encode_image(preprocess(Image.open(item.impath))[None])
        for way, scores in enumerate(patch_scores(image, text)):
            right[way] += int(scores[0].argmax()) == item.label
        cosine += float(mean_cosine(image.tokens[:, 1:])) / 7
    assert measure(model, preprocess, dataset, dataset.test) == pytest.approx(
        (*(100 * count / 7 for count in right), cosine), rel=1e-4
    )
    with pytest.raises(ValueError, match="no images"):
        measure(model, preprocess, dataset, [])


def test_the_curve_starts_before_the_training_and_goes_through_its_checkpoints(small, tmp_path):
    model, preprocess, dataset = small
    (tmp_path / "clip").mkdir()
    with pytest.raises(FileNotFoundError, match="CHECKPOINT_FREQ"):
        draw_curve(model, preprocess, tmp_path, dataset, tmp_path / "curve.png")
    before = measure(model, preprocess, dataset, dataset.test)
    model.visual.proj.neg_()
    torch.save({"state_dict": model.state_dict(), "epoch": 10}, tmp_path / "clip" / "model.pth.tar-10")
    after = measure(model, preprocess, dataset, dataset.test)
    model.visual.proj.neg_()
    torch.save({"state_dict": model.state_dict(), "epoch": 2}, tmp_path / "clip" / "model.pth.tar-2")
    records = [
        {"kind": "epoch", "epoch": epoch, "seconds": 6.0, "contrastive": 1.0, "tokens": 2.0} for epoch in range(1, 11)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = draw_curve(model, preprocess, tmp_path, dataset, tmp_path / "curve.png")
    assert found == [(0, before), (2, before), (10, after)]
    assert Image.open(tmp_path / "curve.png").size[0] > 500


def test_command(small, monkeypatch, capsys):
    model, preprocess, dataset = small
    monkeypatch.setattr(patch_accuracy, "emoji_groups", lambda root, style: dataset)
    monkeypatch.setattr(clip, "load", lambda name: (model, preprocess))
    monkeypatch.setattr(patch_accuracy, "measure", lambda *args: Accuracy(50.0, 25.0, 12.34, 0.5))
    assert main(["tiny", "--styles", "openmoji", "--split", "val"]) == 0
    assert "| tiny | openmoji | 2 | 50.0 | 25.0 | 12.3 | 0.50 |" in capsys.readouterr().out


def test_unknown_names_are_one_error(capsys, tmp_path):
    assert main(["no-such-clip"]) == 2
    assert "'no-such-clip' is neither a file nor one of the models" in capsys.readouterr().err
    assert main(["emoji-ViT-S/8", "--styles", "cubist", "--root", str(tmp_path)]) == 2
    assert "cubist" in capsys.readouterr().err
