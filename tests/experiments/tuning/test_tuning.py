"""Tuning on tiny runs: the same trials for every method, by validation images alone, again after a stop."""

import functools
import json
import math
import re
import sys

import pytest

import train
from dassl.engine.status import read_result
from experiments import RECIPES, RecipeError, load_recipe
from experiments.sweeps import command as sweep
from experiments.sweeps.local import Summary
from experiments.tuning import Tuning
from tests.experiments.sweeps.tiny_recipe import TINY, write_recipe

pytest.importorskip("optuna")

SPACE = {"OPTIM.LR": {"low": 0.001, "high": 0.2, "log": True}, "OPTIM.MAX_EPOCH": [1, 2]}
METHODS = ["Tiny", {"name": "Wide", "trainer": "Tiny", "variant": "wide", "options": {"TRAINER.TINY.WIDTH": 8}}]


def recipe_of(folder, methods=METHODS, own=None, only=None, **entries):
    """The recipe of a study in `folder`; `only` is `methods` of its section tune, `entries` the others."""
    tune = {
        "dataset": str(folder / "set.yaml"),
        "shots": 4,
        "trials": 4,
        "at_once": 2,
        "space": SPACE,
        "own": {"Wide": {"TRAINER.TINY.DROPOUT": [0.0, 0.5]}} if own is None else own,
        **({} if only is None else {"methods": only}),
        **entries,
    }
    return load_recipe(write_recipe(folder, methods=methods, tune=tune))


def option(run, key):
    """Value of a key in the command of a run: the last one counts."""
    return dict(zip(run.argv, run.argv[1:]))[key]


def invent(runs):
    """Does runs without a training: they are better the nearer their learning rate is to 0.02."""
    for run in runs:
        assert option(run, "TEST.SPLIT") == "val"
        accuracy = 90 - 20 * abs(math.log10(float(option(run, "OPTIM.LR")) / 0.02))
        result = {"accuracy": accuracy, "split": "val", "method": "Tiny", "seed": 1, "shots": 4, "fingerprint": {}}
        run.output_dir.mkdir(parents=True)
        (run.output_dir / "result.json").write_text(json.dumps(result))
        (run.output_dir / "DONE").touch()
    return Summary(tuple(run.key for run in runs), {}, ())


def train_here(runs):
    """Does runs in this process."""
    for run in runs:
        train.run(list(run.argv))
    return Summary(tuple(run.key for run in runs), {}, ())


@pytest.fixture
def study(tmp_path):
    """study(do, **entries): tune; the Tuning, and the trials of its methods."""

    def make(do=invent, folder=tmp_path, **entries):
        folder.mkdir(exist_ok=True)
        tuning = Tuning(recipe_of(folder, **entries), folder / "images", folder / "out")
        tuning.summary = tuning.run(do)
        return tuning, [tuning._outcome(method) for method in tuning.methods]

    return make


def value_of(cfg, key):
    return functools.reduce(lambda node, name: node[name], key.split("."), cfg)


def values(outcomes):
    return [[(value, dict(params)) for _, value, params in outcome.trials] for outcome in outcomes]


def test_every_method_has_the_same_trials_which_are_ordinary_runs(study):
    tuning, (tiny, wide) = study(trials=9)
    assert [len(tiny.trials), len(wide.trials)] == [9, 9]
    assert len(tuning.summary.done) == 18
    assert set(tiny.trials[0][2]) == set(SPACE)
    assert set(wide.trials[0][2]) == {*SPACE, "TRAINER.TINY.DROPOUT"}
    for number in range(3):  # the random start is shared
        assert {key: wide.trials[number][2][key] for key in SPACE} == tiny.trials[number][2]
    assert len({params["OPTIM.LR"] for _, _, params in tiny.trials}) == 9
    for outcome in (tiny, wide):
        for number, value, params in outcome.trials:
            (run,) = tuning._runs(outcome.method, number, params)
            cfg = train.build_config(train.build_parser().parse_args(list(run.argv)))
            assert {key: value_of(cfg, key) for key in params} == dict(params)
            assert cfg.TEST.SPLIT == "val"
            assert read_result(run.output_dir)["accuracy"] == value
        assert outcome.value == max(value for _, value, _ in outcome.trials)
        later = [abs(math.log10(params["OPTIM.LR"] / 0.02)) for _, _, params in outcome.trials[3:]]
        assert sum(later) / 6 < 0.58  # the mean of a random search
    report = (tuning.folder / "report.md").read_text()
    assert len(re.findall(r"(?m)^\| (?:Tiny|Wide) +\| +9 \|", report)) == 2
    assert tuning.fingerprint["recipe"] in report


def test_chosen_values_are_configs_that_train_takes(study, tmp_path):
    tuning, outcomes = study()
    for outcome in outcomes:
        name = outcome.method.name
        path = tuning.folder / "configs" / f"{name}.yaml"
        head = path.read_text().split("\n")[2]
        assert all(text in head for text in (*tuning.fingerprint.values(), "optuna"))
        argv = ["--trainer", "Tiny", "--config-file", str(path), "--import", str(TINY)]
        cfg = train.build_config(train.build_parser().parse_args(argv))
        assert {key: value_of(cfg, key) for key in outcome.chosen} == dict(outcome.chosen)
        assert value_of(cfg, "TRAINER.TINY.WIDTH") == {"Wide": 8, "Tiny": 4}[name]
        assert cfg.INPUT.SIZE == (8, 8)
        assert cfg.TEST.SPLIT == "test"


@pytest.mark.slow
def test_a_poisoned_test_split_changes_no_chosen_value(study, tmp_path):
    entries = {"methods": ["Tiny"], "own": {}, "trials": 3}
    _, clean = study(train_here, tmp_path / "clean", **entries)
    poisoned = tmp_path / "poisoned"
    (poisoned / "images").mkdir(parents=True)
    for name in ("red", "green", "blue"):
        for number in range(8, 12):  # the test images of the data set
            (poisoned / "images" / f"{name}-{number}.png").write_text("no image")
    tuning, found = study(train_here, poisoned, **entries)
    assert values(found) == values(clean)
    # the poison works: whoever opens a test image fails
    argv = list(tuning._runs(tuning.methods[0], 99, found[0].chosen)[0].argv)
    with pytest.raises(ValueError, match="cannot decode the image"):
        train.run([*argv, "TEST.SPLIT", "test"])


def test_a_study_that_is_stopped_goes_on_as_if_it_had_not_been(study, tmp_path):
    _, whole = study(folder=tmp_path / "whole")
    calls = []

    def stopped(runs):
        calls.append(len(runs))
        if len(calls) == 2:
            summary = invent(runs[:1])
            return summary._replace(left=tuple(run.key for run in runs[1:]))
        return invent(runs)

    folder = tmp_path / "stopped"
    folder.mkdir()
    tuning = Tuning(recipe_of(folder), folder / "images", folder / "out")
    assert len(tuning.run(stopped).left) == 3
    assert not (tuning.folder / "report.md").exists()
    _, found = study(folder=folder)
    assert values(found) == values(whole)
    again = Tuning(recipe_of(folder), folder / "images", folder / "out")
    assert len(again.run(lambda runs: pytest.fail("all trials are done")).done) == 8


def test_a_trial_that_diverges_counts_and_another_failure_stops(study, tmp_path):
    def diverges(runs):
        done = invent(runs[1:])
        return done._replace(errors={runs[0].key: "epoch 1: Loss is infinite or NaN! (ce = nan)"})

    _, (tiny,) = study(diverges, methods=["Tiny"], own={}, trials=2)
    assert tiny.trials[0][1] == 0
    assert tiny.best == 1
    folder = tmp_path / "full"
    folder.mkdir()
    other = Tuning(recipe_of(folder, trials=1), folder / "images", folder / "out")
    summary = other.run(lambda runs: Summary((), {runs[0].key: "no space left on device"}, (runs[1].key,)))
    assert list(summary.errors.values()) == ["no space left on device"]
    assert [len(other.studies[name].trials) for name in ("Tiny", "Wide")] == [1, 1]
    assert all(trial.value is None for study in other.studies.values() for trial in study.trials)


def test_a_study_of_another_recipe_or_of_other_data_is_refused(study, tmp_path):
    tuning, _ = study(methods=["Tiny"], own={}, trials=1, at_once=1)
    other = Tuning(recipe_of(tmp_path, methods=["Tiny"], own={}, trials=2), tmp_path / "images", tmp_path / "out")
    before, now = tuning.fingerprint["recipe"], other.fingerprint["recipe"]
    with pytest.raises(ValueError, match=rf"another recipe .*recipe {before}, .*this one is recipe {now}.*use another"):
        other.run(invent)
    seeded = Tuning(
        recipe_of(tmp_path, methods=["Tiny"], own={}, trials=1, at_once=1), tmp_path / "images", tmp_path / "out"
    )
    assert seeded.fingerprint == tuning.fingerprint
    seeded.fingerprint = {**seeded.fingerprint, "data": "0" * 12}
    with pytest.raises(ValueError, match=r"of other data .*data 000000000000"):
        seeded.run(invent)


def test_a_data_set_without_validation_images_is_refused(tmp_path):
    recipe = recipe_of(tmp_path)
    (tmp_path / "set.yaml").write_text("DATASET: {NAME: TinyNoVal}\n")
    with pytest.raises(ValueError, match="tuning needs validation images that are not its test images"):
        Tuning(recipe, tmp_path / "images", tmp_path / "out")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"trials": 0}, "trials in tune is 0, expected a number from 1"),
        ({"trials": None}, "trials in tune is None"),
        ({"colour": 1}, "unknown key 'colour' in tune"),
        ({"dataset": "no_such"}, "dataset in tune: there is no config 'no_such'"),
        ({"only": ["CoOp"], "own": {}}, "methods in tune has 'CoOp', expected one of the recipe's methods: Tiny, Wide"),
        ({"space": {}}, "space in tune is {}, expected KEY"),
        ({"space": {"OPTIM.LR": [0.1]}}, r"OPTIM.LR is \[0.1\], expected a list of two or more values, or low < high"),
        ({"space": {"OPTIM.LR": {"low": 0, "high": 1, "log": True}}}, "low above 0 with log"),
        ({"space": {"OPTIM.LR": {"low": 1, "high": 0.1}}}, "low < high"),
        ({"space": {"OPTIM.LT": [1, 2]}}, "OPTIM.LT"),
        ({"space": {"OPTIM.MAX_EPOCH": [1, "two"]}}, "OPTIM.MAX_EPOCH"),
        ({"space": {"SEED": [1, 2]}}, "SEED is decided by the recipe itself"),
        ({"space": {"TEST.SPLIT": ["val", "test"]}}, "TEST.SPLIT decides how a run is evaluated"),
        ({"own": {"CoOp": {"OPTIM.LR": [1, 2]}}}, "own in tune is .*with methods that are tuned"),
        ({"own": {"Tiny": {"OPTIM.LR": [1, 2]}}}, "own of Tiny in tune has OPTIM.LR, which is in space already"),
        (
            {
                "own": {
                    "Tiny": {f"TRAINER.TINY.{key}": [0.1, 0.2] for key in ("DROPOUT", "SLEEP")}
                    | {"OPTIM.MOMENTUM": [0.1, 0.2]}
                }
            },
            "own of Tiny in tune has 3 options, expected at most 2",
        ),
    ],
)
def test_errors_of_the_section(tmp_path, entries, expected):
    with pytest.raises(RecipeError, match=expected) as caught:
        recipe_of(tmp_path, **entries)
    assert str(caught.value).count("; ") == 0


def test_incremental_learning_is_not_tuned(tmp_path):
    tune = {"dataset": str(tmp_path / "set.yaml"), "shots": 1, "trials": 1, "space": SPACE}
    with pytest.raises(RecipeError, match="tune is not possible in task incremental"):
        load_recipe(write_recipe(tmp_path, task="incremental", sets=3, tune=tune))


def test_the_embedded_recipe_covers_its_methods_alike():
    recipe = load_recipe(RECIPES / "tune" / "embedded.yaml")
    assert {"ALIGN", "MaPLe", "CoOp", "CoOpLAMM", "PLOT", "PromptSRC"} == set(recipe.tune.methods)
    assert {len(recipe.tune.space_of(name)) for name in recipe.tune.methods} == {5}


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    recipe = recipe_of(tmp_path)
    assert sweep.main(["tune", str(recipe.path), "--output", str(tmp_path / "out"), "--trust"]) == 2
    assert "pip install 'align-prompt[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command(tmp_path, capsys, monkeypatch):
    write_recipe(tmp_path)
    path, places = str(tmp_path / "table.yaml"), ["--root", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    assert sweep.main(["tune", path, *places]) == 2
    assert "has no section tune" in capsys.readouterr().err
    recipe_of(tmp_path, trials=2)
    assert sweep.main([path, "--tune", "--jobs", "2", *places]) == 0
    assert "all 4 runs are done" in capsys.readouterr().out
    report = (tmp_path / "out" / "tune" / "table" / "report.md").read_text()
    assert re.search(r"\| Tiny +\| +2 \| +0 \| +\d+ s \|", report)
