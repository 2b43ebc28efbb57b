"""Zero-shot CLIP that is not as known stops the other runs of its data set and backbone, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_recipe import tiny_runs

from dassl.engine.status import run_state
from experiments import expand, load_recipe
from experiments.reports.published import PublishedValue
from experiments.sweeps import command as sweep
from experiments.sweeps import sanity_check as checks
from experiments.sweeps.event_log import EventLog
from experiments.sweeps.sanity_check import SanityCheck, compare, known_figures

ZERO_SHOT = {"name": "CLIP", "trainer": "ZeroshotCLIP", "shots": 0, "seeds": 1}
ENSEMBLE = {**ZERO_SHOT, "name": "CLIP (7)", "variant": "select7", "options": {"TRAINER.ZEROSHOT.TEMPLATES": "select7"}}
KNOWN = PublishedValue("few_shot", "emoji-ViT-S/8", 0, "CLIP", "digits", "accuracy", 8.91, "measured", "a test")


def write_recipe(folder, **entries):
    content = {
        "task": "few_shot",
        "config": "emoji",
        "datasets": ["digits"],
        "shots": 1,
        "methods": ["CoOp", ENSEMBLE, ZERO_SHOT],
        **entries,
    }
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def runs_of(folder, **entries):
    return expand(load_recipe(write_recipe(folder, **entries)), folder / "data", folder / "out")


def finish(run, accuracy, **marks):
    """A finished run with this accuracy."""
    run.output_dir.mkdir(parents=True)
    whose = {"method": run.trainer, "seed": run.seed, "shots": run.shots}
    result = {**whose, "accuracy": accuracy, "split": "test", "counts": {"test": 539}, "fingerprint": marks}
    (run.output_dir / "result.json").write_text(json.dumps(result))
    (run.output_dir / "DONE").write_text("now")


def test_figures_that_are_compared_with():
    known = {(number.backbone, number.dataset): number.value for number in known_figures()}
    assert known["ViT-B/16", "eurosat"] == 47.84
    assert known["ViT-B/16", "imagenet"] == 66.72
    assert known["emoji-ViT-S/8", "digits"] == 8.91
    assert len([name for backbone, name in known if backbone == "ViT-B/16"]) == 11
    assert {number.provenance for number in known_figures()} == {"published", "measured"}


def test_only_plain_zero_shot_runs_on_whole_data_sets_are_compared(tmp_path):
    def compared(**entries):
        return [run.key for run, _ in SanityCheck(runs_of(tmp_path, **entries)).compared.values()]

    assert compared() == ["few_shot/digits/shots_0/ZeroshotCLIP/emoji/seed1"]
    assert compared(methods=["CoOp"]) == []
    assert compared(methods=[ENSEMBLE]) == []
    assert compared(methods=[{**ZERO_SHOT, "variant": "other", "options": {"INPUT.TEMPLATE": "{}"}}]) == []
    assert compared(methods=[{**ZERO_SHOT, "variant": "other", "options": {"TEST.SPLIT": "val"}}]) == []
    assert compared(methods=[{**ZERO_SHOT, "variant": "other", "options": {"MODEL.BACKBONE.NAME": "RN50"}}]) == []
    assert compared(task="base2new") == []  # half of the classes
    assert compared(datasets=["emoji_clocks"]) == []  # nothing is known
    styles = {"DATASET.TARGET_DOMAINS": "['openmoji']"}
    assert compared(datasets=["emoji_groups"], methods=[{**ZERO_SHOT, "variant": "other", "options": styles}]) == []
    assert len(compared(datasets=["emoji_groups", "digits", "emoji_clocks"])) == 2
    both = compared(datasets=["eurosat", "imagenet"], config="vit_b16", methods=[ZERO_SHOT])
    assert [key.split("/")[1] for key in both] == ["eurosat", "imagenet"]
    whole = {"task": "cross_dataset", "source": "imagenet", "targets": ["dtd", "cifar10"], "config": "vit_b16"}
    path = tmp_path / "cross.yaml"
    path.write_text(yaml.safe_dump({**whole, "shots": 16, "methods": [{"name": "CLIP", "trainer": "ZeroshotCLIP"}]}))
    runs = expand(load_recipe(path), tmp_path / "data", tmp_path / "out")
    assert set(SanityCheck(runs).compared) == {("imagenet", "ViT-B/16"), ("dtd", "ViT-B/16")}


@pytest.mark.parametrize(
    ("accuracy", "marks", "wrong"),
    [
        (8.91, {}, False),
        (8.41, {}, False),
        (9.41, {}, False),
        (9.42, {}, True),
        (8.40, {}, True),
        (50.0, {"split_origin": "unrecognised"}, True),
        (50.0, {"split_origin": "self-made"}, False),
        (None, {}, False),
    ],
)
def test_half_a_point_is_allowed(tmp_path, accuracy, marks, wrong):
    run = next(run for run in runs_of(tmp_path) if run.method == "CLIP")
    marks = {"templates": "a {}.", "classnames": "abc", "transforms": {"test": "Resize"}, "backbone": "def", **marks}
    finish(run, accuracy, **marks)
    check = compare(run, KNOWN)
    assert bool(check.err) is wrong
    if wrong:
        for text in ("digits", "8.91", "a test", "539 test images", "'a {}.'", "Resize", "abc", "def", "--no-gate"):
            assert text in check.err
    if accuracy is None or marks.get("split_origin") == "self-made":
        assert "not compared" in check.line()


def test_a_finished_run_stops_what_follows_and_other_data_sets_go_on(tmp_path):
    runs = runs_of(tmp_path, datasets=["digits", "emoji_objects", "emoji_clocks"])
    sanity_check = SanityCheck(runs)
    zero_shot = {run.dataset: run for run in runs if run.method == "CLIP"}
    coop = {run.dataset: run for run in runs if run.method == "CoOp"}
    assert sanity_check.first(coop["digits"]) == zero_shot["digits"]
    assert sanity_check.first(coop["emoji_clocks"]) is None
    assert sanity_check.first(zero_shot["digits"]) is None
    assert sanity_check.check(coop["digits"]) is None
    finish(zero_shot["digits"], 20.0)
    finish(zero_shot["emoji_objects"], 42.4)
    assert sanity_check.check(coop["digits"]).err
    assert sanity_check.check(coop["emoji_objects"]).err == ""
    assert len(sanity_check.checks()) == 2
    assert "not compared: emoji_clocks (emoji-ViT-S/8)" in sanity_check.summary(runs)
    other = replace(coop["digits"], argv=(*coop["digits"].argv, "MODEL.BACKBONE.NAME", "RN50"))
    assert sanity_check.check(other) is None


def doctored(monkeypatch, value):
    monkeypatch.setattr(checks, "known_figures", lambda: [KNOWN._replace(value=value)])


@pytest.fixture
def run_sweep(tmp_path, pictures_root):
    """Sweeps over two kinds of zero-shot CLIP, which share the features of the images."""
    cached = {"DATASET.CACHE_DIR": f"{pictures_root}/cache", "TEST.FEATURE_CACHE": True}
    ensemble = {**ENSEMBLE, "options": {**ENSEMBLE["options"], **cached}}

    def run(*flags):
        path = write_recipe(tmp_path, methods=[ensemble, {**ZERO_SHOT, "variant": "cached", "options": cached}])
        places = ["--root", pictures_root, "--output", str(tmp_path / "out"), "--gpus", "none", "--threads", "1"]
        return sweep.main([str(path), *places, *flags]), expand(load_recipe(path), pictures_root, tmp_path / "out")

    return run


@pytest.mark.slow
def test_a_sweep_stops_and_goes_on(run_sweep, tmp_path, monkeypatch, capsys):
    doctored(monkeypatch, 47.84)
    code, (ensemble, zero_shot) = run_sweep()
    out, err = capsys.readouterr()
    assert code == sweep.OFF == 4
    assert "sanity check: zero-shot CLIP comes first on digits (emoji-ViT-S/8)" in out
    assert "sanity check: digits, emoji-ViT-S/8: 8.91, known 47.84: OFF" in out
    assert err.count("error: zero-shot CLIP has 8.91 % on digits with emoji-ViT-S/8, but 47.84 % is known") == 1
    assert "Likely causes: images (539 test images" in err
    assert f"blocked: {ensemble.key}: zero-shot CLIP is off on digits" in out
    assert (run_state(zero_shot.output_dir), run_state(ensemble.output_dir)) == ("done", "new")
    assert run_sweep()[0] == 4  # again, without doing anything
    assert run_state(ensemble.output_dir) == "new"
    assert run_sweep("--only", "method=CLIP (7)")[0] == 4  # the result is there, whether asked for or not
    capsys.readouterr()
    assert sweep.main(["status", str(tmp_path / "table.yaml"), "--output", str(tmp_path / "out")]) == 0
    assert "known 47.84: OFF" in capsys.readouterr().out
    assert run_sweep("--no-gate")[0] == 0
    assert run_state(ensemble.output_dir) == "done"
    events = [(event.kind, event.key) for event in EventLog(tmp_path / "out").read()]
    assert events.count(("no-gate", "")) == 1
    assert events.count(("sanity-check", zero_shot.key)) == 3
    assert next(event.error for event in EventLog(tmp_path / "out").read() if event.kind == "no-gate")


@pytest.mark.slow
def test_a_sweep_within_half_a_point_does_everything(run_sweep, tmp_path, monkeypatch, capsys):
    doctored(monkeypatch, 9.4)
    code, runs = run_sweep()
    assert code == 0
    assert {run_state(run.output_dir) for run in runs} == {"done"}
    done = [event.key for event in EventLog(tmp_path / "out").read() if event.kind in ("done", "sanity-check")]
    assert done == [runs[1].key, runs[1].key, runs[0].key]  # zero-shot first, though it is listed last
    assert "known 9.40: right" in capsys.readouterr().out


def test_without_a_zero_shot_run_it_says_so(tmp_path):
    runs = tiny_runs(tmp_path)
    assert "nothing is compared with known figures" in SanityCheck(runs).summary(runs)
    assert Path(runs[0].output_dir).exists() is False
