"""Every registered method through train.py on the embedded data, with a tiny random CLIP."""

import csv
import json
import math

import pytest
import torch

import align_prompt
import clip
import train
from dassl.engine import TRAINER_REGISTRY
from dassl.engine import command as command_module
from tests.short_options import SHORT, short_run, tiny_clip
from trainers import promptsrc
from trainers.base import PromptTrainer

PRETRAINING = {"ContrastiveCLIP", "UTA"}
FEW_SHOT = sorted(
    name
    for name in TRAINER_REGISTRY.registered_names()
    if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.") and name not in PRETRAINING
)
LEARNING = [name for name in FEW_SHOT if TRAINER_REGISTRY.get(name).by_steps]
FITTED = [name for name in FEW_SHOT if TRAINER_REGISTRY.get(name).fit is not PromptTrainer.fit and name not in LEARNING]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_emoji")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny CLIP with random weights, as a file."""
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    clip.save_model(tiny_clip(64), path)
    return str(path)


@pytest.fixture
def built(monkeypatch):
    """The trainers that train.py builds during a test, in order."""
    found, build = [], command_module.build_trainer

    def keep(cfg):
        found.append(build(cfg))
        return found[-1]

    monkeypatch.setattr(command_module, "build_trainer", keep)
    return found


@pytest.fixture
def run(pictures_root, backbone, tmp_path, monkeypatch):
    """Runs train.main on one style of EmojiGroups, with few sentences of teachers."""
    monkeypatch.setattr(promptsrc, "TEACHER_TEMPLATES", promptsrc.TEACHER_TEMPLATES[:4])

    def start(method, output, *flags, options=()):
        arguments = ["--root", pictures_root, "--trainer", method]
        arguments += ["--output-dir", str(tmp_path / output), "--seed", "1"]
        pairs = short_run(tmp_path, backbone, **{"DATALOADER.TEST.BATCH_SIZE": 100, "OPTIM.MAX_EPOCH": 2})
        return train.main([*arguments, *flags, *pairs, *map(str, SHORT.get(method, [])), *map(str, options)])

    return start


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "epoch"]


def logits_of(trainer):
    """Logits of the first test batch."""
    batch = next(iter(trainer.test_loader))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(batch["img"])


def check_predictions(folder, result):
    """A model rebuilt from the run's folder alone predicts what the run's evaluation did, to the last digit."""
    with open(folder / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["counts"]["evaluated"]
    assert sum(row["label"] == row["prediction"] for row in rows) == result["counts"]["correct"]
    found = align_prompt.load(folder).predict([row["path"] for row in rows], top=1)
    assert [row.label for row in found] == [row["prediction"] for row in rows]
    assert [row.probability for row in found] == [float(row["probability"]) for row in rows]


@pytest.mark.parametrize("method", [*FEW_SHOT, "UTA"])
def test_train_evaluate_and_load(method, run, built, tmp_path, capsys):
    options = ["DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 4, "TEST.PREDICTIONS", True]
    result = run(method, "base", options=options)
    trained = built[-1]
    check_predictions(tmp_path / "base", result)
    assert result["method"] == method
    assert result["counts"]["classes"] == 8
    assert 0 <= result["accuracy"] <= 100
    assert (tmp_path / "base" / "DONE").exists()

    again = run(
        method,
        "again",
        "--eval-only",
        "--model-dir",
        str(tmp_path / "base"),
        options=["DATASET.SUBSAMPLE_CLASSES", "base"],
    )
    assert again["accuracy"] == result["accuracy"]
    torch.testing.assert_close(logits_of(built[-1]), logits_of(trained), rtol=0, atol=0)

    flags, options = ["--eval-only", "--model-dir", str(tmp_path / "base")], ["DATASET.SUBSAMPLE_CLASSES", "new"]
    if trained.class_bound:  # what it learned cannot move to new classes
        with pytest.raises(SystemExit) as stopped:
            run(method, "new", *flags, options=options)
        assert stopped.value.code == 2
        assert "was trained on other classes" in capsys.readouterr().err
        return
    new = run(method, "new", *flags, options=options)
    assert new["counts"]["classes"] == 7
    assert logits_of(built[-1]).shape[1] == 7


def test_a_calibrated_run_predicts_calibrated_probabilities(run, tmp_path):
    options = ["TEST.CALIBRATE", True, "TEST.PREDICTIONS", True, "TEST.OOD_DATASETS", "('emoji_clocks',)"]
    result = run("CoOp", "calibrated", options=[*options, "OPTIM.MAX_EPOCH", 1])
    check_predictions(tmp_path / "calibrated", result)
    model = align_prompt.load(tmp_path / "calibrated")
    assert model.temperature == result["calibration"]["temperature"] != 1
    assert model.trainer.similarity_scale() == pytest.approx(float(model.prompted.clip.logit_scale.exp()))
    assert set(result["ood"]) == {"emoji_clocks", "average"}


@pytest.mark.parametrize("method", LEARNING)
def test_loss_falls_and_only_the_learner_changes(method, run, built, monkeypatch, tmp_path):
    before = {}
    build = command_module.build_trainer

    def keep(cfg):
        trainer = build(cfg)
        before.update({name: value.clone() for name, value in trainer.model.named_parameters()})
        return trainer

    monkeypatch.setattr(command_module, "build_trainer", keep)
    run(method, "run", options=["OPTIM.MAX_EPOCH", 5])
    first, *_, last = losses(tmp_path / "run")
    assert last < first
    after = dict(built[-1].model.named_parameters())
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith("learner.")}


@pytest.mark.parametrize("method", FITTED)
def test_a_fit_changes_the_learner_alone_and_is_kept(method, run, built, monkeypatch, tmp_path):
    before = {}
    build = command_module.build_trainer

    def keep(cfg):
        trainer = build(cfg)
        before.update({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return trainer

    monkeypatch.setattr(command_module, "build_trainer", keep)
    result = run(method, "run", options=["OPTIM.MAX_EPOCH", 5])
    assert result["epochs"] == 1
    after = built[-1].model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("learner.") for name in changed)
    (record,) = [r for r in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open()) if r["kind"] == "epoch"]
    assert record["images"] == result["counts"]["train"]
    assert (tmp_path / "run" / built[-1].model_name / "model.pth.tar-1").is_file()


@pytest.mark.parametrize("method", FITTED)
def test_a_fit_is_not_repeated_when_the_run_goes_on(method, run, built, monkeypatch, tmp_path):
    whole = run(method, "whole")
    cls = TRAINER_REGISTRY.get(method)

    def stop(self):
        raise RuntimeError("killed after the fit")

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_train", stop)
        with pytest.raises(RuntimeError):
            run(method, "stopped")
    assert not (tmp_path / "stopped" / "DONE").exists()
    monkeypatch.setattr(cls, "fit", lambda self: pytest.fail("fitted again"))
    result = run(method, "stopped")
    assert (tmp_path / "stopped" / "DONE").exists()
    assert result["accuracy"] == whole["accuracy"]
    for one, other in zip(built[0].model.learner.state_dict().values(), built[-1].model.learner.state_dict().values()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", FEW_SHOT)
@pytest.mark.parametrize("precision", ["fp16", "amp", "bf16"])
def test_every_precision_runs(method, precision, run, built):
    node = TRAINER_REGISTRY.get(method).node
    result = run(method, "run", options=[f"TRAINER.{node}.PREC", precision, "OPTIM.MAX_EPOCH", 1])
    assert math.isfinite(result["accuracy"])
    assert result["precision"] == ("fp32" if precision == "fp16" and not torch.cuda.is_available() else precision)
    assert all(p.dtype == torch.float32 for p in built[-1].model.learner.parameters())


def test_classes_are_encoded_once_per_evaluation(run, built, monkeypatch):
    calls = []
    encode = clip.CLIP.encode_text
    monkeypatch.setattr(
        clip.CLIP, "encode_text", lambda self, *args, **more: calls.append(1) or encode(self, *args, **more)
    )
    run("ZeroshotCLIP", "run", options=["DATALOADER.TEST.BATCH_SIZE", 5])
    assert len(built[-1].test_loader) > 3
    assert len(calls) == 1


def test_class_specific_context_refuses_other_classes(run, tmp_path, capsys):
    own = ["TRAINER.COOP.CSC", True]
    run("CoOp", "base", options=[*own, "DATASET.SUBSAMPLE_CLASSES", "base"])
    with pytest.raises(SystemExit) as stopped:
        run(
            "CoOp",
            "new",
            "--eval-only",
            "--model-dir",
            str(tmp_path / "base"),
            options=[*own, "DATASET.SUBSAMPLE_CLASSES", "new"],
        )
    assert stopped.value.code == 2
    assert "class" in capsys.readouterr().err


def test_contrastive_pretraining_writes_a_loadable_clip(pictures_root, tmp_path, built):
    options = {
        "DATASET.NAME": "EmojiCaptions",
        "DATASET.SOURCE_DOMAINS": "('openmoji',)",
        "DATASET.TARGET_DOMAINS": "('openmoji',)",
        "DATALOADER.TRAIN_X.BATCH_SIZE": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.SIZE": "(64, 64)",
        "INPUT.TRANSFORMS": "('normalize',)",
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 1e-3,
        "OPTIM.MAX_EPOCH": 3,
        "TRAINER.CONTRASTIVE.VISION_LAYERS": 1,
        "TRAINER.CONTRASTIVE.TEXT_LAYERS": 1,
        "TRAINER.CONTRASTIVE.VISION_WIDTH": 64,
        "TRAINER.CONTRASTIVE.TEXT_WIDTH": 64,
        "TRAINER.CONTRASTIVE.TEXT_HEADS": 1,
        "TRAINER.CONTRASTIVE.EMBED_DIM": 32,
        "TRAINER.CONTRASTIVE.VOCAB_SIZE": 2048,
        "TRAINER.CONTRASTIVE.VISION_PATCH_SIZE": 16,
        "TRAINER.CONTRASTIVE.FULL_EPOCHS": 1,
    }
    flags = [
        "--root",
        pictures_root,
        "--trainer",
        "ContrastiveCLIP",
        "--output-dir",
        str(tmp_path / "run"),
        "--seed",
        "1",
    ]
    train.main([*flags, *[str(item) for pair in options.items() for item in pair]])
    first, *_, last = losses(tmp_path / "run")
    assert last < first
    trained = built[-1].model.clip
    model, _ = clip.load(str(tmp_path / "run" / "clip.safetensors"))
    image = torch.randn(2, 3, 64, 64)
    ids = clip.tokenize(["a cat", "a dog"], vocab_size=2048)
    with torch.no_grad():
        torch.testing.assert_close(model(image, ids)[0], trained.eval()(image, ids)[0], rtol=0.02, atol=0.05)


def test_equal_runs_write_equal_files(run, tmp_path):
    for output in ("a", "b"):
        run("UTA", output, options=["OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, "TRAINER.UTA.PREC", "fp32"])
    assert (tmp_path / "a" / "clip.safetensors").read_bytes() == (tmp_path / "b" / "clip.safetensors").read_bytes()


def test_unmasked_token_alignment_writes_a_loadable_clip(run, built, backbone, tmp_path):
    """The loss falls, the teacher and the text tower stay, and the file is a CLIP with the student's image tower."""
    result = run("UTA", "run", options=["OPTIM.MAX_EPOCH", 5, "TRAINER.UTA.PREC", "bf16", "TRAINER.UTA.DROP_PATH", 0.1])
    first, *_, last = losses(tmp_path / "run")
    assert last < first
    trainer, (start, _) = built[-1], clip.load(backbone)
    assert result["precision"] == "bf16"
    assert result["trainable_parameters"] == sum(p.numel() for p in trainer.student.parameters())
    model, _ = clip.load(str(tmp_path / "run" / "clip.safetensors"))
    image, ids = torch.randn(2, 3, 64, 64), clip.tokenize(["a cat", "a dog"], vocab_size=2048)
    with torch.no_grad():
        expected = trainer.student.eval().visual(image).pooled
        torch.testing.assert_close(model.encode_image(image).pooled, expected, rtol=0.02, atol=0.02)
        text = start.encode_text(ids).pooled
        torch.testing.assert_close(model.encode_text(ids).pooled, text, rtol=0.02, atol=0.02)
        taught = trainer.teacher(image).pooled.float()
        torch.testing.assert_close(taught, start.encode_image(image).pooled, rtol=0.1, atol=0.1)


def test_unmasked_token_alignment_goes_on_exactly(run, built, monkeypatch):
    """A run that is killed after its second epoch and started again has the weights of one that was not."""
    own = ["OPTIM.MAX_EPOCH", 3, "TRAINER.UTA.DROP_PATH", 0.2, "INPUT.TRANSFORMS", "('random_flip','normalize')"]
    cls = TRAINER_REGISTRY.get("UTA")
    run("UTA", "whole", options=own)
    after_epoch = cls.after_epoch

    def stop(self):
        if self.epoch == 2:
            raise RuntimeError("killed in the third epoch")
        after_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_epoch", stop)
        with pytest.raises(RuntimeError):
            run("UTA", "stopped", options=own)
    run("UTA", "stopped", options=own)
    assert built[-1].start_epoch == 2
    for one, other in zip(built[0].student.state_dict().values(), built[-1].student.state_dict().values()):
        assert torch.equal(one, other)


def test_cached_targets_and_accumulated_steps_change_nothing(run, built):
    """Without masks, teacher features from memory give the same weights, and so do two half batches for a whole one."""
    own = ["TRAINER.UTA.MASK_RATIO", 0.0, "DATALOADER.TRAIN_X.BATCH_SIZE", 14, "OPTIM.NAME", "sgd", "OPTIM.LR", 1e-3]
    run("UTA", "plain", options=own)
    run("UTA", "cached", options=[*own, "TRAINER.UTA.CACHE_TEACHER", True])
    run("UTA", "halves", options=[*own, "DATALOADER.TRAIN_X.BATCH_SIZE", 7, "OPTIM.ACCUMULATE", 2])
    plain, cached, halves = (trainer.student.state_dict() for trainer in built[-3:])
    assert int(built[-2].targets.known.sum()) >= 14
    for name in plain:
        torch.testing.assert_close(plain[name], cached[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(plain[name], halves[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def eva_backbone(tmp_path_factory):
    """A tiny CLIP with an EVA-style image tower."""
    torch.manual_seed(0)
    model = clip.CLIP(32, 64, 3, 64, 16, 77, 2048, 32, 2, 3, vision_heads=2, rope_grid=16)
    torch.nn.init.normal_(model.visual.head.weight, std=0.1)
    path = tmp_path_factory.mktemp("clip") / "student.safetensors"
    clip.save_model(model, path)
    return str(path)


@pytest.mark.parametrize("method", ["CoOp", "VPT", "MaPLe", "ALIGN"])
def test_a_student_is_a_backbone(method, run, built, eva_backbone, tmp_path):
    run(method, "run", options=["MODEL.BACKBONE.NAME", eva_backbone, "OPTIM.MAX_EPOCH", 4, "OPTIM.LR", 0.01])
    first, *_, last = losses(tmp_path / "run")
    assert last < first
    assert type(built[-1].model.clip.visual).__name__ == "EvaVisionTransformer"


@pytest.mark.parametrize("method", ["CoOp", "LAMM"])
def test_a_run_starts_from_another_one(method, run, built, tmp_path):
    """Training on the second of three sets of classes starts with what was learned on the first."""
    own = ["TRAINER.LAMM.UNSEEN", "words"]
    run(method, "first", options=[*own, "DATASET.SUBSAMPLE_CLASSES", "1/3"])
    first = built[-1].model.learner
    start = ["DATASET.SUBSAMPLE_CLASSES", "2/3", "TRAIN.INIT_FROM", str(tmp_path / "first"), "OPTIM.LR", 1e-12]
    result = run(method, "second", options=[*own, *start])
    second = built[-1].model.learner
    assert result["counts"]["classes"] == 5
    if method == "CoOp":
        torch.testing.assert_close(second.ctx, first.ctx)
    joint = ["DATASET.SUBSAMPLE_CLASSES", "1-2/3"]
    result = run(method, "joint", "--eval-only", "--model-dir", str(tmp_path / "second"), options=[*own, *joint])
    assert result["counts"]["classes"] == 10
    if method == "LAMM":
        tokens = built[-1].model.learner.tokens_by_class()
        for found, expected in zip(tokens, [*first.tokens_by_class(), *second.tokens_by_class()]):
            torch.testing.assert_close(found[: len(expected)], expected)


def test_a_start_that_is_not_there(run, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run("CoOp", "run", options=["TRAIN.INIT_FROM", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err
