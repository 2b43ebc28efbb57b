"""TEST.CALIBRATE, OOD_DATASETS and JOINT of a run, against the same figures computed from its logits by hand."""

import logging

import numpy as np
import pytest
import torch
from tiny_runs import tiny_arguments

import train
from dassl.engine import command
from dassl.engine.open_world import joint_figures
from dassl.evaluation.calibration import fit_temperature
from dassl.evaluation.out_of_distribution import detection, scores

ASKED = ("TEST.CALIBRATE", True, "TEST.OOD_DATASETS", "['tiny_others', 'tiny_no_val']", "TEST.JOINT", True)


def logits_of(trainer, loader):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        parts = [(trainer.model_inference(batch["img"]), batch["label"]) for batch in loader]
    return tuple(torch.cat(column) for column in zip(*parts))


def test_a_run_measures_what_is_asked_for(tiny, tmp_path, monkeypatch, caplog):
    built = []
    build = command.build_trainer
    monkeypatch.setattr(command, "build_trainer", lambda cfg: built.append(build(cfg)) or built[-1])
    with caplog.at_level(logging.WARNING):
        result = tiny(*ASKED)
    assert "tiny_no_val has classes of the model, whose images count as foreign: blue, green, red" in caplog.text
    trainer = built[-1]
    inside, label = logits_of(trainer, trainer.test_loader)
    temperature = fit_temperature(*logits_of(trainer, trainer.val_loader))
    assert result["calibration"]["temperature"] == pytest.approx(temperature)
    assert sum(result["calibration"]["reliability"]["count"]) == sum(result["reliability"]["count"]) == len(label)
    assert sum(result["reliability"]["correct"]) == result["counts"]["correct"]
    calibrated = (inside / temperature).softmax(1).max(1).values
    assert sum(result["calibration"]["reliability"]["probability"]) == pytest.approx(float(calibrated.sum()), rel=1e-4)
    for name in ("tiny_others", "tiny_no_val"):  # the same pictures as the test images: nothing tells them apart
        assert result["ood"][name]["images"] == 12
        assert result["ood"][name]["mcm"]["auroc"] == pytest.approx(50.0)
    outside, _ = logits_of(trainer, trainer.other_loaders["tiny_others"])
    expected = detection(*(scores(side)["energy"].numpy() for side in (inside, outside)))
    assert result["ood"]["average"]["energy"] == pytest.approx(expected)
    right = (inside.argmax(1) == label).numpy()
    base, new = (100 * np.mean(right[[int(y) in half for y in label]]) for half in ((0, 1), (2,)))
    assert result["joint"] == pytest.approx({"base": base, "new": new, "h": 2 * base * new / max(base + new, 1e-9)})

    plain = tiny(output="plain")
    assert not {"calibration", "ood", "joint"} & set(plain)
    same = ("accuracy", "ece", "per_class", "reliability")
    assert [plain[name] for name in same] == [result[name] for name in same]
    flags = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    monkeypatch.setattr("dassl.engine.open_world.fit_temperature", lambda *_: pytest.fail("the run has one"))
    again = tiny(*ASKED, output="again", flags=flags)
    assert [again[name] for name in ("calibration", "ood")] == [result[name] for name in ("calibration", "ood")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TEST.CALIBRATE", True, "TEST.SPLIT", "val"), "expected False with TEST.SPLIT val"),
        (("TEST.JOINT", True, "DATASET.SUBSAMPLE_CLASSES", "base"), "expected DATASET.SUBSAMPLE_CLASSES all"),
        (("TEST.OOD_DATASETS", "['tiny_othrs']"), "do you mean tiny_others"),
        (("TEST.OOD_DATASETS", "['dtd']"), "datasets.prepare"),
        (("TEST.OOD_DATASETS", "[1]"), "TEST.OOD_DATASETS"),
        (("TEST.CALIBRATE", True, "TEST.EVALUATOR", "Retrieval"), "with TEST.EVALUATOR Retrieval"),
    ],
)
def test_bad_input_is_one_clear_error_before_training(root, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        train.main(tiny_arguments(root, tmp_path / "run", *options))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len([line for line in error.splitlines() if line.startswith("error:")]) == 1
    assert message in error
    assert not list((tmp_path / "run").glob("*/model.pth.tar*"))


def test_calibration_needs_validation_images_of_its_own(root, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(tiny_arguments(root, tmp_path / "run", "TEST.CALIBRATE", True, dataset="TinyNoVal"))
    assert "TinyNoVal has no validation images other than its test images" in capsys.readouterr().err


def test_joint_figures_of_odd_classes_by_hand():
    counts = {"a": (10, 9), "b": (10, 5), "c": (20, 20), "d": (5, 1), "e": (5, 2)}
    per_class = {
        name: {"label": label, "total": total, "correct": correct}
        for label, (name, (total, correct)) in enumerate(counts.items())
    }
    assert joint_figures(per_class, 5) == pytest.approx({"base": 85.0, "new": 30.0, "h": 2 * 85 * 30 / 115})
    with pytest.raises(ValueError, match="no test images of new classes"):
        joint_figures({"a": per_class["a"]}, 5)
