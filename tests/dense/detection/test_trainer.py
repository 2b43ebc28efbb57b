"""CascadeMaskRCNN as a task: readers and options together, and a run that is killed."""

import json
from pathlib import Path

import pytest
import torch

import clip
import train
from dassl.engine import build_trainer
from dense.detection.annotations import LVIS, CocoInstances, RepeatSampler, read_annotations
from dense.detection.trainer import CascadeMaskRCNN
from dense.scenes import write_scenes

ROOT = Path(__file__).resolve().parents[3]
CONFIG = str(ROOT / "configs/trainers/CascadeMaskRCNN/emoji.yaml")
SMALL = {
    "DATALOADER.TRAIN_X.BATCH_SIZE": 3,
    "OPTIM.MAX_EPOCH": 2,
    "TRAINER.CASCADE.EPOCH_STEPS": 2,
    "TRAINER.CASCADE.WARMUP_STEPS": 1,
    "TRAINER.CASCADE.SIZE": 64,
    "TRAINER.CASCADE.CHANNELS": 8,
    "TRAINER.CASCADE.WIDTH": 8,
    "TRAINER.CASCADE.HIDDEN": 16,
    "TRAINER.CASCADE.LOWEST_SCORE": 0.01,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    write_scenes(place / "emoji_scenes", {"training": 8, "validation": 3, "validation_unseen": 3}, 64)
    return place


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny CLIP with random weights, as a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    clip.save_model(clip.CLIP(32, 32, 2, 64, 8, 77, 2048, 32, 2, 2, vision_heads=2), path)
    return path


@pytest.fixture
def flags(root, backbone):
    """flags(output, **options) is a command line."""

    def make(output, **options):
        line = ["--root", root, "--seed", 1, "--trainer", "CascadeMaskRCNN", "--config-file", CONFIG]
        line += ["--dataset-config-file", "emoji_scenes", "--backbone", backbone, "--output-dir", output]
        pairs = {**SMALL, **{f"TRAINER.CASCADE.{name}": value for name, value in options.items()}}
        return [*map(str, line), *(str(item) for pair in pairs.items() for item in pair)]

    return make


@pytest.fixture
def trainer(flags, tmp_path):
    """trainer(**options) built from the command line."""
    return lambda **options: build_trainer(
        train.build_config(train.build_parser().parse_args(flags(tmp_path / "run", **options)))
    )


def test_losses_and_predictions_of_scenes(trainer):
    built = trainer(FEDERATED=10, REPEAT=0.3, STAGES=2)
    assert isinstance(built.train_loader_x.order_sampler, RepeatSampler)
    assert len(built.train_loader_x) == 2
    assert built.model.roi_heads.frequency.sum() == built.frequency.sum() > 8
    built.set_model_mode("train")
    batch = next(iter(built.train_loader_x))
    terms = built.losses(batch)
    assert set(terms) == {
        *("loss_objectness", "loss_rpn_box_reg", "loss_mask"),
        *("loss_classifier", "loss_box_reg", "loss_classifier_2", "loss_box_reg_2"),
    }
    assert all(torch.isfinite(value) for value in terms.values())
    built.before_inference()
    image, places = built.parse_batch_test(next(iter(built.test_loader)))
    with torch.no_grad():
        found = built.model_inference(image)
        built.evaluator.process(found, places)
        drawn = built.drawings(2)
    assert found[0]["masks"].shape[1:] == (1, 64, 64)
    assert built.evaluator.evaluate()["box_ap"] >= 0
    assert [(one.dtype, one.shape) for one in drawn] == [(torch.uint8, (3, 256, 256))] * 2


def test_stages_are_checked_with_the_other_options(trainer):
    with pytest.raises(ValueError, match=r"STAGES is 4, expected a whole number from 1 to 3"):
        trainer(STAGES=4)
    with pytest.raises(ValueError, match=r"SCALE is .*expected two numbers above 0, the smaller first"):
        trainer(SCALE="(2.0, 0.5)")
    with pytest.raises(ValueError, match=r"PROPOSALS is .*expected two whole numbers from 1"):
        trainer(PROPOSALS="(0, 10)")


def test_other_classes_than_those_of_the_data_set_are_refused(trainer, monkeypatch):
    def more(*places):
        found = read_annotations(*places)
        return found._replace(classnames=[*found.classnames, "unicorn"])

    monkeypatch.setattr("dense.detection.trainer.read_annotations", more)
    with pytest.raises(ValueError, match=r"instances_training.json has 31 classes .*, expected the 30 of EmojiScenes"):
        trainer()


def test_folders_of_coco_and_lvis(tmp_path):
    cfg = train.build_config(train.build_parser().parse_args(["--root", str(tmp_path), "--trainer", "CoOp"]))
    with pytest.raises(FileNotFoundError, match=r"CocoInstances needs .*instances_train2017.json and .*val2017.json"):
        CocoInstances(cfg)
    for name in ("annotations/instances_train2017.json", "annotations/instances_val2017.json", *LVIS.files):
        (tmp_path / "coco" / name).parent.mkdir(parents=True, exist_ok=True)
        content = {"categories": [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}]}
        (tmp_path / "coco" / name).write_text(json.dumps(content))
    found = CocoInstances(cfg)
    assert found.classnames == ["a", "b"]
    assert found.splits["test"].images == tmp_path / "coco" / "val2017"
    assert LVIS(cfg).splits["train"].images == tmp_path / "coco"
    assert LVIS(cfg).file("train", "instances").name == "lvis_v1_train.json"


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_to_the_same_weights(flags, whole_and_killed, tmp_path):
    whole, killed = whole_and_killed(CascadeMaskRCNN, flags)
    assert whole["box_ap"] == killed["box_ap"] >= 0
    assert "mask_ap_small" in whole
    assert (tmp_path / "whole" / "predictions.png").is_file()
