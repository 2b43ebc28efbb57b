"""PromptSRC: loss terms against plain loops, the Gaussian average against its definition, and whole runs."""

import json
import math

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
    unit,
)

import clip
import train
from dassl.engine import command as command_module
from tests.short_options import short_run
from trainers.parts.templates import IMAGENET_TEMPLATES
from trainers.promptsrc import PromptSRC, average_of_copies, gaussian_weights

LABELS = torch.tensor([0, 3, 1])


def build(model, names, **options):
    torch.manual_seed(1)
    short = {"N_CTX_TEXT": 2, "N_CTX_VISION": 3, "PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 4}
    return trainer_of(PromptSRC, model, names, **{**short, **options})


def mean_text(model, name, normalised):
    total = 0
    for template in IMAGENET_TEMPLATES[:60]:
        feature = text_feature(model, template.replace("{}", name.replace("_", " ")), [])
        total = total + (unit(feature) if normalised else feature)
    return total / 60


def reference_terms(model, trainer, images, names):
    """Every loss term by loops over images, classes and feature entries."""
    learner, options = trainer.model.learner, trainer.options
    context = [learner.ctx[0], *(layer[0] for layer in learner.deep)]
    texts = [text_feature(model, f"a a of a {name.replace('_', ' ')}.", context) for name in names]
    features = [image_feature(model, image, [layer[0] for layer in learner.vision]) for image in images]
    teacher_texts = [mean_text(model, name, options.NORMALIZE_TEMPLATES) for name in names]
    teacher_images = [image_feature(model, image, []) for image in images]
    logits = logits_of(model, features, texts)
    known = logits_of(model, teacher_images, teacher_texts)

    def l1(students, teachers):
        total = sum((unit(a) - unit(b)).abs().sum() for a, b in zip(students, teachers))
        return total / (len(students) * len(students[0]))

    kl = 0
    for student_row, teacher_row in zip(logits, known):
        p, p0 = student_row.exp() / student_row.exp().sum(), teacher_row.exp() / teacher_row.exp().sum()
        kl = kl + sum(b * (b.log() - a.log()) for a, b in zip(p, p0))
    return {
        "ce": cross_entropy(logits, LABELS),
        "text_l1": options.TEXT_LOSS_WEIGHT * l1(texts, teacher_texts),
        "image_l1": options.IMAGE_LOSS_WEIGHT * l1(features, teacher_images),
        "kl": kl / (len(images) * len(names) if options.KL_PER_CLASS else len(images)),
    }


CASES = {
    "defaults": {},
    "released teacher": {"NORMALIZE_TEMPLATES": False},
    "KL by image": {"KL_PER_CLASS": False},
    "other weights": {"TEXT_LOSS_WEIGHT": 3.0, "IMAGE_LOSS_WEIGHT": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_every_term_and_its_gradients(tiny_clip, names, images, case):
    trainer = build(tiny_clip, names, **CASES[case])
    found = trainer.losses({"img": images, "label": LABELS})
    expected = reference_terms(tiny_clip, trainer, images, names)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert_same_gradients(sum(found.values()), sum(expected.values()), trainer.model.learner)


def test_the_released_weights_are_the_defaults():
    options = PromptSRC.defaults().PROMPTSRC
    assert (options.TEXT_LOSS_WEIGHT, options.IMAGE_LOSS_WEIGHT, options.KL_PER_CLASS) == (25, 10, True)
    assert (options.GPA_MEAN, options.GPA_STD) == (15, 1)


def test_text_teacher_once_per_run_and_patches_once_per_step(tiny_clip, names, images, monkeypatch):
    trainer, texts, patches = build(tiny_clip, names), [], []
    encode = clip.CLIP.encode_text
    monkeypatch.setattr(clip.CLIP, "encode_text", lambda *args, **more: texts.append(1) or encode(*args, **more))
    handle = tiny_clip.visual.conv1.register_forward_hook(lambda *_: patches.append(1))
    for _ in range(3):
        trainer.losses({"img": images, "label": LABELS})
    handle.remove()
    assert (len(texts), len(patches)) == (3, 3)
    assert "teacher" not in trainer.model.learner.state_dict()


@pytest.mark.parametrize(("epochs", "mean", "std"), [(20, 15, 1), (20, 6, 10), (50, 45, 5), (5, 30, 0.01), (1, 15, 1)])
def test_gaussian_weights(epochs, mean, std):
    found = gaussian_weights(epochs, mean, std)
    assert abs(float(found.sum()) - 1) < 1e-12
    raw = [math.exp(-((a - mean) ** 2) / (2 * std**2)) for a in range(1, epochs + 1)]
    if sum(raw) > 0:  # not when every one of them underflows
        assert found.tolist() == pytest.approx([value / sum(raw) for value in raw], rel=1e-9)
    if (epochs, mean, std) == (20, 15, 1):
        assert float(found[14]) == pytest.approx(0.399, abs=5e-4)


def test_averaging_copies_is_the_identity_in_fp32_and_not_in_fp16():
    torch.manual_seed(0)
    weights = gaussian_weights(20, 15, 1)
    exact, half = torch.nn.Linear(50, 50), torch.nn.Linear(50, 50).half()
    before = exact.weight.detach().clone(), half.weight.detach().clone()
    average_of_copies(exact, weights)
    average_of_copies(half, weights)
    torch.testing.assert_close(exact.weight, before[0], rtol=1e-6, atol=1e-8)
    changed = (half.weight != before[1]).float().mean()
    assert 0.3 < float(changed) < 0.8
    torch.testing.assert_close(half.weight, before[1], rtol=5e-3, atol=1e-6)


def test_bad_options(tiny_clip, names):
    with pytest.raises(ValueError, match=r"(?s)PROMPT_DEPTH_VISION is 0, .*GPA_STD is 0.0, .*GPA_SCOPE is 'some'"):
        build(tiny_clip, names, PROMPT_DEPTH_VISION=0, GPA_STD=0.0, GPA_SCOPE="some")
    with pytest.raises(ValueError, match=r"TEXT_LOSS_WEIGHT is -1.0, expected 0 or more"):
        build(tiny_clip, names, TEXT_LOSS_WEIGHT=-1.0)
    trainer = build(tiny_clip, names, GPA_SCOPE="all")
    trainer.cfg.TEST.FINAL_MODEL = "best_val"
    with pytest.raises(ValueError, match="best_val may deploy an epoch before the average"):
        trainer.check_cfg(trainer.cfg)


# whole runs, on few pictures

EPOCHS = 4


class Stopped(Exception):
    """A run is cut off."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, pictures_root):
    """run(name, *flags, stop=None, **options) -> trainer, states of the learner at the ends of the epochs."""
    folder = tmp_path_factory.mktemp("promptsrc")
    torch.manual_seed(0)
    tiny = clip.CLIP(32, 64, 2, 64, 16, 77, 2048, 32, 2, 2)
    clip.save_model(tiny, folder / "tiny.safetensors")
    build_trainer = command_module.build_trainer

    def run(name, *flags, stop=None, **options):
        states, built = [], []

        def watched(cfg):
            trainer = build_trainer(cfg)
            run_epoch, before_epoch = trainer.run_epoch, trainer.before_epoch

            def keep():
                run_epoch()
                state = trainer.model.learner.state_dict()
                states.append({key: value.clone() for key, value in state.items()})

            def cut():
                if len(states) == stop:
                    raise Stopped
                before_epoch()

            trainer.run_epoch, trainer.before_epoch = keep, cut
            if stop == EPOCHS:
                trainer.after_train = cut
            built.append(trainer)
            return trainer

        settings = {
            "DATASET.SUBSAMPLE_CLASSES": "base",
            "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
            "DATALOADER.TEST.BATCH_SIZE": 200,
            "INPUT.TRANSFORMS": "('random_resized_crop', 'random_flip', 'normalize')",
            "OPTIM.MAX_EPOCH": EPOCHS,
            "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 2,
            "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 2,
            "TRAINER.PROMPTSRC.GPA_MEAN": 3,
            **options,
        }
        arguments = ["--root", pictures_root, "--trainer", "PromptSRC", "--seed", "1", *flags]
        arguments += ["--output-dir", str(folder / name)]
        patch = pytest.MonkeyPatch()
        patch.setattr(command_module, "build_trainer", watched)
        try:
            train.main([*arguments, *short_run(folder, folder / "tiny.safetensors", **settings)])
        except Stopped:
            pass
        finally:
            patch.undo()
        return built[0], states

    run.folder = folder
    return run


def saved(runs, name, epoch=EPOCHS):
    path = runs.folder / name / "VLPromptLearner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_the_average_of_all_epochs_is_saved_and_tested(few_emoji, runs):
    trainer, states = runs("whole")
    assert len(states) == EPOCHS
    raw = [math.exp(-((a - 3) ** 2) / 2) for a in range(1, EPOCHS + 1)]
    found = saved(runs, "whole")
    for name, value in found.items():
        expected = sum(weight / sum(raw) * state[name] for weight, state in zip(raw, states))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(trainer.model.learner.state_dict()[name], value, rtol=0, atol=0)
        assert not torch.equal(value, states[-1][name])
    result = json.loads((runs.folder / "whole" / "result.json").read_text())
    runs("again", "--eval-only", "--model-dir", str(runs.folder / "whole"))
    assert json.loads((runs.folder / "again" / "result.json").read_text())["accuracy"] == result["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_goes_on_exactly(few_emoji, runs, stop):
    if not (runs.folder / "whole" / "DONE").exists():
        runs("whole")
    _, states = runs(f"stopped{stop}", stop=stop)
    assert len(states) == stop
    _, rest = runs(f"stopped{stop}")
    assert len(rest) == EPOCHS - stop
    whole, resumed = saved(runs, "whole"), saved(runs, f"stopped{stop}")
    assert list(whole) == list(resumed)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_scope_all_averages_the_frozen_weights_too(few_emoji, runs, monkeypatch):
    calls = []
    average = average_of_copies
    monkeypatch.setattr("trainers.promptsrc.average_of_copies", lambda *args: calls.append(args) or average(*args))
    option = {"TRAINER.PROMPTSRC.GPA_SCOPE": "all"}
    trained, _ = runs("all", **option)
    assert [(module, len(weights)) for module, weights in calls] == [(trained.model.clip, EPOCHS)]
    loaded, _ = runs("all_again", "--eval-only", "--model-dir", str(runs.folder / "all"), **option)
    runs("all_stopped", stop=EPOCHS, **option)
    resumed, states = runs("all_stopped", **option)
    assert (len(states), len(calls)) == (0, 4)
    for other in (loaded, resumed):
        for name, value in trained.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name])
