"""UperNet against transformers' model, mIoU against plain loops, readers against bad files, and whole runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import clip
import train
from dassl.config import ConfigError
from dassl.engine import build_trainer
from dense.backbone import LEVELS
from dense.scenes import write_scenes
from dense.segmentation.data import IGNORED, Augment, LabelledPictures
from dense.segmentation.network import UperNetwork, View, segmentation_loss, slide, starts
from dense.segmentation.trainer import MeanIoU, UperNet
from tests.tolerance import assert_close

ROOT = Path(__file__).resolve().parents[2]
PIXELS = [0.0] * 3, [1.0] * 3


def test_upernet_is_that_of_transformers_on_the_same_weights(rng):
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    torch.manual_seed(0)
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=stages)
    config = UperNetConfig(backbone_config=resnet, hidden_size=12, auxiliary_channels=6, num_labels=5)
    theirs = UperNetForSemanticSegmentation(config).eval()

    class Backbone(nn.Module):
        channels = 8

        def forward(self, image):
            return dict(zip(LEVELS, theirs.backbone(image).feature_maps))

    ours = UperNetwork(Backbone(), 5, 12).eval()
    for name in ("decode_head", "auxiliary_head"):
        getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
    image = torch.randn(2, 3, 64, 96, generator=rng)
    label = torch.randint(0, 5, (2, 64, 96), generator=rng)
    label[0, :20] = IGNORED
    with torch.no_grad():
        expected, found = theirs(image, labels=label), ours(image)
    assert_close(found.main, expected.logits)
    loss = segmentation_loss(found.main, label) + 0.4 * segmentation_loss(found.auxiliary, label)
    assert_close(loss, expected.loss)


def test_a_picture_without_labels_has_no_loss():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), IGNORED))
    loss.backward()
    assert (float(loss.detach()), float(logits.grad.abs().max())) == (0.0, 0.0)


def test_miou_is_that_of_a_plain_loop(rng):
    names = ["a", "b", "c", "d"]  # d never occurs
    label = [torch.randint(0, 3, (6, 7), generator=rng) for _ in range(3)]
    predicted = [torch.randint(0, 3, (6, 7), generator=rng) for _ in range(3)]
    label[0][:3] = IGNORED
    metric = MeanIoU(names)
    for _ in range(2):  # the second time after a reset
        metric.reset()
        metric.process(predicted, label)
    found = metric.evaluate()
    pairs = [
        (int(t), int(p))
        for true, guess in zip(label, predicted)
        for t, p in zip(true.flatten(), guess.flatten())
        if t != IGNORED
    ]
    ious, accuracies = [], []
    for c in range(3):
        both = sum(t == p == c for t, p in pairs)
        ious.append(100 * both / sum(c in pair for pair in pairs))
        accuracies.append(100 * both / sum(t == c for t, _ in pairs))
    assert found["miou"] == pytest.approx(sum(ious) / 3)
    assert found["mean_accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert found["pixel_accuracy"] == pytest.approx(100 * sum(t == p for t, p in pairs) / len(pairs))
    assert [entry["iou"] for entry in metric.summary()["per_class"].values()] == pytest.approx(ious)


def test_miou_by_hand():
    metric = MeanIoU(["a", "b"])
    metric.process([torch.tensor([[0, 0, 1, 1]])], [torch.tensor([[0, 1, 1, IGNORED]])])
    assert metric.evaluate()["miou"] == pytest.approx(50.0)  # 1 of 2 for each class
    metric.reset()
    metric.process([torch.zeros(1, 2, dtype=torch.long)], [torch.full((1, 2), IGNORED)])
    with pytest.raises(ValueError, match="no pixel is labelled"):
        metric.evaluate()


def test_windows_cover_everything():
    assert starts(10, 4, 3) == [0, 3, 6]
    assert starts(11, 4, 3) == [0, 3, 6, 7]
    assert starts(4, 4, 3) == starts(2, 4, 3) == [0]


def test_overlapping_windows_are_averaged(rng):
    image = torch.randn(1, 2, 7, 9, generator=rng)

    def scores(part):  # depends on the window
        return part - part.mean((2, 3), keepdim=True)

    total, count = torch.zeros_like(image), torch.zeros(7, 9)
    for y in (0, 2, 3):
        for x in (0, 2, 4, 5):
            total[..., y : y + 4, x : x + 4] += scores(image[..., y : y + 4, x : x + 4])
            count[y : y + 4, x : x + 4] += 1
    assert_close(slide(scores, image, (4, 4), 0.5), total / count)
    assert torch.equal(slide(scores, image, (7, 9), 0.5), scores(image))


def test_scales_and_mirrors_are_averaged(rng):
    image = torch.randn(1, 3, 8, 12, generator=rng)
    view = View((64, 64), scales=(1.0, 2.0), flip=True)
    found = view.probabilities(lambda x: x, image)
    double = F.interpolate(image, (16, 24), mode="bilinear", antialias=True)
    parts = [image.softmax(1), F.interpolate(double, (8, 12), mode="bilinear").softmax(1)]
    assert_close(found, sum(parts) / 2)  # the mirror image of pixelwise scores is the same
    assert View((64, 64), side=16).probabilities(lambda x: x[:, :1] * 0 + x.shape[-1], image).shape == (1, 1, 8, 12)


def test_picture_and_labels_move_together():
    """Every pixel shows its label, so that it still must after resizing, cropping and mirroring."""
    label = torch.arange(5).repeat_interleave(8).expand(30, -1).to(torch.uint8)
    image = (label * 50).expand(3, -1, -1).contiguous()
    torch.manual_seed(0)
    shapes = set()
    for _ in range(10):
        found, cut = Augment((24, 32), 0, (0.5, 1.5), 0.75, colors=False)(image, label)
        known = cut != IGNORED
        inner = (found[0].float() / 50 - cut.float()).abs()[known]
        assert inner.median() == 0
        assert (found[:, ~known] == 0).all()
        shapes.add((*found.shape, *cut.shape))
    assert shapes == {(3, 24, 32, 24, 32)}


def picture(folder, stem="a", size=(6, 4), labels=None, mode="L"):
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", size, "red").save(folder / "images" / f"{stem}.jpg")
    values = np.zeros(size[::-1], np.uint8) if labels is None else np.array(labels, np.uint8)
    Image.fromarray(values).convert(mode).save(folder / "masks" / f"{stem}.png")
    return LabelledPictures(folder / "images", folder / "masks", 3, IGNORED, *PIXELS)


def test_labels_are_counted_from_nothing(tmp_path):
    item = picture(tmp_path, labels=[[0, 1, 2, 3, 0, 1]] * 4)[0]
    assert item["label"][0].tolist() == [IGNORED, 0, 1, 2, IGNORED, 0]
    assert item["img"].shape == (3, 4, 6)


def test_bad_label_maps_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r'"\S+a.png" is 2 x 2, expected 4 x 6 of its picture'):
        picture(tmp_path, labels=[[0, 0], [0, 0]])[0]
    with pytest.raises(ValueError, match=r'"\S+a.png" is 4 x 6 x 3, expected 4 x 6'):
        picture(tmp_path, mode="RGB")[0]
    with pytest.raises(ValueError, match=r'"\S+a.png" has the label 4, expected 0 \(nothing\) to 3 \(the last class\)'):
        picture(tmp_path, labels=[[4] * 6] * 4)[0]
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "b.png")
    with pytest.raises(FileNotFoundError, match=r"2 pictures of .* have no partner of the same name, such as a"):
        LabelledPictures(tmp_path / "images", tmp_path / "masks", 3, IGNORED, *PIXELS)


def config(root, *more, trainer="UperNet", data="emoji_scenes"):
    flags = ["--root", str(root), "--trainer", trainer, "--dataset-config-file", data, *map(str, more)]
    return train.build_config(train.build_parser().parse_args(flags))


def test_settings_of_the_paper():
    for name, lr, drop, decay in (("base", 6e-5, 0.15, 0.85), ("large", 4e-5, 0.2, 0.9)):
        cfg = config("data", "--config-file", str(ROOT / f"configs/trainers/UperNet/{name}.yaml"), data="ade20k")
        options = cfg.TRAINER.UPERNET
        assert ("adamw", lr) == (cfg.OPTIM.NAME, cfg.OPTIM.LR)
        assert (drop, decay) == (options.DROP_PATH, options.LAYER_DECAY)
        assert (tuple(cfg.INPUT.SIZE), cfg.OPTIM.MAX_EPOCH * options.EPOCH_STEPS) == ((512, 512), 60_000)
        assert 8 * cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 32


def test_options_that_do_not_fit_are_refused():
    schedule = ("OPTIM.LR_SCHEDULER", "batch_linear", "OPTIM.WARMUP_EPOCH", -1)
    for pairs, message in (
        (("OPTIM.LR_SCHEDULER", "cosine"), "LR_SCHEDULER is cosine, expected batch_cosine or batch_linear"),
        ((*schedule, "DATALOADER.TRAIN_X.BATCH_SIZE", 1), "BATCH_SIZE is 1, expected 2 or more"),
        ((*schedule, "OPTIM.WARMUP_EPOCH", 1), "expected 0: set TRAINER.UPERNET.WARMUP_STEPS"),
        ((*schedule, "TRAINER.UPERNET.PATCH_SIZE", 14), "PATCH_SIZE is 14, expected 0, 4, 8, 16 or 32"),
        ((*schedule, "TRAINER.UPERNET.LAYER_DECAY", 1.5), "LAYER_DECAY is 1.5, expected a number above 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            config("data", *pairs)


def ade20k(root, labels=3):
    """A small SceneParse150 tree of 3 classes."""
    folder = root / "ADEChallengeData2016"
    for part, count in (("training", 3), ("validation", 2)):
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 16), "red").save(folder / "images" / part / f"{number}.jpg")
            values = np.full((16, 20), labels, np.uint8)
            Image.fromarray(values).save(folder / "annotations" / part / f"{number}.png")
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t1\t1\t1\twall", "2\t.\t1\t1\t1\tbuilding, edifice"]
    (folder / "objectInfo150.txt").write_text("\n".join([*rows, "3\t.\t1\t1\t1\tsky;heaven", ""]))
    return folder


def test_ade20k_is_read_and_what_is_missing_named(tmp_path):
    from dense.segmentation.data import ADE20K

    cfg = config(tmp_path, data="ade20k", trainer="ZeroshotSegmentation")
    with pytest.raises(FileNotFoundError, match=r"objectInfo150.txt is missing: unpack ADEChallengeData2016.zip"):
        ADE20K(cfg)
    ade20k(tmp_path)
    found = ADE20K(cfg)
    assert found.classnames == ["wall", "building", "sky"]
    assert found.splits["val"] == found.splits["test"]
    with pytest.raises(ValueError, match="ADE20K has no instances of its train split, which this task needs"):
        found.file("train", "instances")
    with pytest.raises(ValueError, match="not classes of whole pictures"):
        _ = found.train_x


def test_a_split_without_pictures_is_refused(tmp_path, backbone):
    folder = ade20k(tmp_path)
    for file in (*(folder / "images" / "training").iterdir(), *(folder / "annotations" / "training").iterdir()):
        file.unlink()
    cfg = config(tmp_path, "--backbone", backbone, data="ade20k", trainer="ZeroshotSegmentation")
    with pytest.raises(ValueError, match="the train split of ADE20K has no pictures for this task"):
        build_trainer(cfg)


# whole runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    write_scenes(place / "emoji_scenes", {"training": 12, "validation": 4, "validation_unseen": 5}, 64)
    return place


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny CLIP with random weights, as a file."""
    torch.manual_seed(0)
    model = clip.CLIP(32, 32, 2, 64, 8, 77, 2048, 32, 2, 2, vision_heads=2)
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    clip.save_model(model, path)
    return path


def test_zero_shot_classes_are_the_nearest_to_the_tokens(root, backbone, tmp_path):
    more = ("--backbone", backbone, "--output-dir", tmp_path, "INPUT.SIZE", "(64, 64)")
    trainer = build_trainer(config(root, *more, trainer="ZeroshotSegmentation"))
    trainer.before_inference()
    item = trainer.test_loader.dataset[0]
    with torch.no_grad():
        found = trainer.model_inference(item["img"][None])[0]
        tokens = trainer.model.backbone.tokens(item["img"][None], values=True)[0]
        text = trainer.model.classes
        for y, x in ((0, 0), (3, 5), (7, 7)):  # at the corners of a picture all the weight is on one patch
            place = {0: 0, 7: 63}.get(y), {0: 0, 7: 63}.get(x)
            if None not in place:
                cosines = [float(F.cosine_similarity(tokens[:, y, x], one, dim=0)) for one in text]
                assert int(found[place]) == max(range(30), key=cosines.__getitem__)
    assert sorted(trainer.evaluator.names) == sorted(trainer.dataset.classnames)
    assert len(trainer.drawings(3)) == 3


def test_a_data_set_of_classes_is_refused(tmp_path, monkeypatch):
    cfg = config(tmp_path, "--output-dir", tmp_path, data="emoji_groups", trainer="ZeroshotSegmentation")
    monkeypatch.setattr("dense.trainer.build_dataset", lambda cfg: object())
    with pytest.raises(ValueError, match=r"DATASET.NAME is EmojiGroups, which has classes of whole pictures"):
        build_trainer(cfg)


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_to_the_same_weights(root, backbone, whole_and_killed, tmp_path):
    config_file = str(ROOT / "configs/trainers/UperNet/emoji.yaml")
    flags = ["--root", str(root), "--seed", "1", "--trainer", "UperNet", "--dataset-config-file", "emoji_scenes"]
    flags += ["--config-file", config_file, "--backbone", str(backbone)]
    pairs = ["INPUT.SIZE", "(64, 64)", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "2"]
    pairs += ["TRAINER.UPERNET.WARMUP_STEPS", "1", "TRAINER.UPERNET.PREC", "fp32", "TRAINER.UPERNET.HIDDEN", "8"]
    pairs += ["TRAINER.UPERNET.CROP", "32"]
    whole, killed = whole_and_killed(UperNet, lambda folder: [*flags, "--output-dir", str(folder), *pairs])
    assert whole["miou"] == killed["miou"]
    assert whole["counts"]["train"] == 12
    assert list(whole["per_class"])[-1] == "background"
    assert sum(entry["total"] for entry in whole["per_class"].values()) == whole["counts"]["test"] * 64 * 64
    assert (tmp_path / "whole" / "predictions.png").is_file()
