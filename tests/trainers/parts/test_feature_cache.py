"""The cache of image features: the same logits, whole files only, and never the features of anything else."""

import errno
import logging
import os

import filelock
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import clip
import train
from clip import Encoded
from dassl.engine import build_trainer
from dassl.engine.result import build_result
from trainers.parts import feature_cache
from trainers.parts.feature_cache import FeatureFile, structure_hash

KEPT = ("ZeroshotCLIP", "CoOp", "CoCoOp", "PLOT", "TCP", "CoOpLAMM", "CLIPAdapter", "TipAdapter", "LinearProbe")
PROMPTED = ("VPT", "MaPLe", "ALIGN", "PLOTPP")
OPTIONS = {
    "CoCoOp": ["TRAINER.COCOOP.N_CTX", 2],
    "TCP": ["TRAINER.TCP.BLOCK", 1],
    "PLOT": ["TRAINER.PLOT.N_CTX", 2, "TRAINER.PLOT.N", 2],
    "VPT": ["TRAINER.VPT.PROMPT_DEPTH_VISION", 1],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", 2],
    "ALIGN": ["TRAINER.ALIGN.PROMPT_DEPTH", 2],
}
IMAGES = 70


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny CLIP with random weights, as a file."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "image_resolution": 64, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 16}
    sizes |= {"context_length": 77, "vocab_size": 49408, "transformer_width": 32, "transformer_heads": 1}
    path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
    clip.save_model(clip.CLIP(**sizes, transformer_layers=2), path)
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Noise in seven class folders, IMAGES of it for tests."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in {"train": 1, "val": 1, "test": IMAGES // 7}.items():
        for name in "abcdefg":
            (folder / split / f"letter {name}").mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8))
                picture.save(folder / split / f"letter {name}" / f"{number}.png")
    return str(folder)


@pytest.fixture
def make(backbone, root, tmp_path):
    """A trainer of a method, as train.py builds it, with something learned."""

    def made(method, *options, cache=True):
        flags = ["--root", root, "--trainer", method, "--seed", "1", "--backbone", backbone]
        flags += ["--dataset-config-file", "configs/datasets/folder.yaml", "--output-dir", str(tmp_path / "out")]
        options = ["DATASET.NUM_SHOTS", 1, "DATALOADER.NUM_WORKERS", 0, *OPTIONS.get(method, ()), *options]
        options += ["DATASET.CACHE_DIR", tmp_path / "cache", "TEST.FEATURE_CACHE", cache, "INPUT.SIZE", "(64, 64)"]
        torch.manual_seed(0)
        trainer = build_trainer(train.build_config(train.build_parser().parse_args([*flags, *map(str, options)])))
        with torch.no_grad():
            for parameter in trainer.model.learner.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return trainer

    return made


@pytest.fixture
def kept(tmp_path):
    """Names of the files in the folder of features."""
    return lambda *kinds: sorted(
        path for path in (tmp_path / "cache").glob("features/*") if path.suffix in (kinds or (".safetensors",))
    )


def evaluate(trainer):
    """Logits of all test images in order, the accuracy, and whether stored features were used."""
    found = []
    process = trainer.evaluator.process

    def recorded(output, label):
        found.append(output.clone())
        process(output, label)

    trainer.evaluator.process = recorded
    accuracy = trainer.test()
    trainer.evaluator.process = process
    return torch.cat(found), accuracy, trainer.evaluation.stored


@pytest.mark.parametrize("method", KEPT)
def test_logits_from_the_file_are_those_of_the_images(method, make, kept):
    plain, accuracy, _ = evaluate(make(method, cache=False))
    assert not kept()
    first, *figures = evaluate(make(method))
    assert figures == [accuracy, False]
    (path,) = kept()
    second, *figures = evaluate(make(method))
    assert figures == [accuracy, True]
    assert plain.shape == (IMAGES, 7)
    torch.testing.assert_close(first, plain, rtol=0, atol=0)
    torch.testing.assert_close(second, plain, rtol=0, atol=0)
    stored = load_file(path)
    assert set(stored) == ({"pooled", "tokens"} if method == "PLOT" else {"pooled"})
    assert kept() == [path]
    assert not kept(".tmp")


@pytest.mark.parametrize("method", PROMPTED)
def test_features_of_prompted_towers_are_not_kept(method, make, kept, caplog):
    caplog.set_level(logging.INFO)
    plain, *_ = evaluate(make(method, cache=False))
    found, _, stored = evaluate(make(method))
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert not stored
    assert not kept()
    assert "not cached: the method prompts the image tower" in caplog.text


def test_a_method_that_trains_the_tower_or_reads_images_its_own_way_is_not_served(make):
    trainer = make("CoOp")
    assert trainer.changes_images() == ""
    trainer.model.clip.visual.conv1.weight.requires_grad_(True)
    assert "trains the image tower" in trainer.changes_images()
    trainer.model.clip.visual.requires_grad_(False)

    class Other(type(trainer)):
        def model_inference(self, image):
            return super().model_inference(image.flip(-1))

    trainer.__class__ = Other
    assert trainer.changes_images() == "the method has its own Other.model_inference"
    assert trainer.evaluation_batches(trainer.test_loader) is trainer.test_loader


def test_a_score_that_reads_tokens_must_say_so(make):
    trainer = make("PLOT")
    trainer.local_features = False
    with pytest.raises(ValueError, match="without empty axes"):
        trainer.test()
    trainer = make("CoOp")
    trainer.model.score = lambda image, text, scale: image.tokens.mean(dim=1) @ text.pooled.T
    with pytest.raises(RuntimeError, match="meta"):
        trainer.test()


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    "harm",
    [flip, lambda data: data[:-7], lambda data: b"", lambda data: data.replace(b'"count\\": 70', b'"count\\": 71')],
)
def test_damaged_files_are_made_again(harm, make, kept, caplog):
    trainer = make("CoOp")
    expected, accuracy, _ = evaluate(trainer)
    (path,) = kept()
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert path.read_bytes() != whole
    found, *figures = evaluate(trainer)
    assert figures == [accuracy, False]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert caplog.text.count("are made again, the file is damaged") == 1
    assert path.read_bytes() == whole
    assert evaluate(trainer)[2]


def test_a_full_disk_costs_only_the_cache(make, kept, caplog, monkeypatch):
    expected, accuracy, _ = evaluate(make("CoOp", cache=False))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(feature_cache.os, "posix_fallocate", full)
    found, *figures = evaluate(make("CoOp"))
    assert figures == [accuracy, False]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [record.getMessage() for record in caplog.records].count(
        "Image features are not kept: [Errno 28] No space left on device"
    ) == 1
    assert not kept(".safetensors", ".tmp")


@pytest.fixture
def writer(tmp_path):
    """Of a file of four images, with two of them in it."""
    file = FeatureFile(str(tmp_path / "cache"), {"features": ["pooled"], "count": 4})
    made = file.writer()
    made.put(torch.arange(2), Encoded(torch.ones(2, 3), torch.ones(2, 0, 3)))
    return made


def test_a_disk_that_is_full_at_the_end_leaves_nothing(writer, kept):
    class Full:
        def close(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert kept(".tmp")
    writer.file.close()
    writer.file = Full()
    writer.close()
    assert not kept(".tmp", ".safetensors")
    again = writer.target.writer()  # the lock was let go
    again.close()


def test_a_file_that_gets_no_space_is_closed(writer, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer.close()
    monkeypatch.setattr(feature_cache.os, "posix_fallocate", full)
    again = writer.target.writer()
    again.put(torch.arange(2), Encoded(torch.ones(2, 3), torch.ones(2, 0, 3)))
    again.close()
    assert again.file.closed


def test_a_file_system_without_locks_costs_only_the_cache(tmp_path, monkeypatch, caplog):
    def acquire(*_, **__):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert FeatureFile(str(tmp_path), {"features": ["pooled"], "count": 4}).writer() is None
    assert "Image features are not kept: no flock here" in caplog.text


def test_a_folder_that_cannot_be_made_costs_only_the_cache(make, tmp_path, caplog):
    trainer = make("CoOp")
    (tmp_path / "cache" / "features").write_text("in the way")
    assert not evaluate(trainer)[2]
    assert "Image features are not kept" in caplog.text


def test_an_evaluation_beside_another_neither_waits_nor_writes(make, kept, caplog):
    caplog.set_level(logging.INFO)
    trainer = make("CoOp")
    evaluate(trainer)
    (path,) = kept()
    path.unlink()
    with filelock.FileLock(path.with_suffix(".lock")):
        assert not evaluate(trainer)[2]
    assert "Another process writes" in caplog.text
    assert not kept()
    evaluate(trainer)
    assert kept() == [path]


def test_an_evaluation_that_stops_leaves_nothing(make, kept, monkeypatch):
    trainer = make("CoOp")
    inference, calls = trainer.model_inference, []

    def stop(image):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inference(image)

    monkeypatch.setattr(trainer, "model_inference", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.test()
    assert not kept(".safetensors", ".tmp")
    monkeypatch.undo()
    assert not evaluate(trainer)[2]  # the lock was let go
    assert evaluate(trainer)[2]


def test_what_features_depend_on_has_a_file_of_its_own(make, kept):
    trainer = make("CoOp", "INPUT.TRANSFORMS", "('normalize',)")
    evaluate(trainer)
    assert len(kept()) == 1

    def another():
        """Evaluates from images again, into a file more."""
        before = len(kept())
        assert not evaluate(trainer)[2]
        assert len(kept()) == before + 1

    item = trainer.dm.dataset.test[3]
    os.utime(item.impath, ns=(1, 1))  # an image was replaced
    another()
    trainer.dm.dataset.test[3], trainer.dm.dataset.test[4] = trainer.dm.dataset.test[4], item
    another()
    with torch.no_grad():
        trainer.model.clip.visual.conv1.weight[0, 0, 0, 0] += 1
    another()
    trainer.model.clip.visual.transformer.resblocks[0].attn.heads = 2
    another()
    normalize = trainer.dm.tfm_test.transforms[-1]
    assert type(normalize).__name__ == "Normalize"
    normalize.mean = [0.1, 0.2, 0.3]
    another()
    trainer.precision.name = "bf16"
    another()
    assert evaluate(trainer)[2]


def test_structure_tells_towers_with_equal_weights_apart(backbone):
    one, _ = clip.load(backbone)
    other, _ = clip.load(backbone)
    assert structure_hash(one.visual) == structure_hash(other.visual)
    other.visual.transformer.resblocks[0].mlp.gelu = torch.nn.GELU()
    assert structure_hash(one.visual) != structure_hash(other.visual)


def test_plain_features_of_methods_are_kept_and_augmented_ones_are_not(make, kept, monkeypatch):
    trainer = make("LinearProbe")
    expected = trainer.frozen_features(trainer.test_loader)
    assert len(kept()) == 1
    monkeypatch.setattr(trainer.model.clip, "encode_image", None)
    for found, value in zip(trainer.frozen_features(trainer.test_loader), expected):
        torch.testing.assert_close(found, value, rtol=0, atol=0)
    tip = make("TipAdapter", "TRAINER.TIP_ADAPTER.AUGMENT_EPOCH", 1)
    tip.fill_cache()
    assert len(kept()) == 1


def test_the_speed_of_stored_features_is_no_speed_of_the_method(make):
    trainer = make("CoOp")
    evaluate(trainer)
    assert build_result(trainer, "eval", 1)["images_per_second"] > 0
    evaluate(trainer)
    result = build_result(trainer, "eval", 1)
    assert result["images_per_second"] is None
    assert result["eval_seconds"] > 0
    assert result["counts"]["evaluated"] == IMAGES
