"""Incremental learning: its runs, their order and folders, and one sequence from end to end."""

import subprocess

import pytest
import torch
import yaml

import clip
import train
from experiments import RecipeError, expand, load_recipe, step_parts
from experiments.recipe import ROOT
from experiments.reports.document import build_report
from experiments.reports.published import PublishedTable
from experiments.reports.run_results import read_runs

TABLE = {
    "task": "incremental",
    "config": "emoji",
    "datasets": ["emoji_groups"],
    "sets": 3,
    "shots": 4,
    "seeds": 2,
    "methods": ["CoOp"],
}


@pytest.fixture
def load(tmp_path):
    """load(**entries): a recipe like TABLE with other entries; None removes one."""

    def make(**entries):
        content = {key: value for key, value in {**TABLE, **entries}.items() if value is not None}
        path = tmp_path / "steps.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_recipe(path)

    return make


def understood(run):
    args = train.build_parser().parse_args(list(run.argv))
    return train.build_config(args), args


def test_runs_in_order(load):
    runs = expand(load(), root="/data", output="/out")
    parts = ["step1", "step2", "step2_set1", "step2_joint", "step3", "step3_set1", "step3_set2", "step3_joint"]
    assert [run.part for run in runs] == parts == list(step_parts(3))
    rest = "shots_4/CoOp/emoji/seed2"
    folders = {
        "step1": f"incremental/train/emoji_groups/set_1_of_3/{rest}",
        "step2": f"incremental/train/emoji_groups/set_2_of_3/{rest}",
        "step2_set1": f"incremental/test/emoji_groups/step_2_of_3/set_1/{rest}",
        "step2_joint": f"incremental/test/emoji_groups/step_2_of_3/joint/{rest}",
        "step3": f"incremental/train/emoji_groups/set_3_of_3/{rest}",
        "step3_set1": f"incremental/test/emoji_groups/step_3_of_3/set_1/{rest}",
        "step3_set2": f"incremental/test/emoji_groups/step_3_of_3/set_2/{rest}",
        "step3_joint": f"incremental/test/emoji_groups/step_3_of_3/joint/{rest}",
    }
    assert {run.part: run.key for run in runs} == folders
    needs = {run.part: run.needs for run in runs}
    assert needs["step1"] == ()
    assert needs["step2"] == (folders["step1"],)
    assert needs["step3"] == needs["step2_set1"] == needs["step2_joint"] == (folders["step2"],)
    assert needs["step3_set1"] == needs["step3_set2"] == needs["step3_joint"] == (folders["step3"],)


def test_classes_and_starts(load):
    seen = {run.part: understood(run) for run in expand(load(), root="/data", output="/out")}
    assert {part: cfg.DATASET.SUBSAMPLE_CLASSES for part, (cfg, _) in seen.items()} == {
        "step1": "1/3", "step2": "2/3", "step2_set1": "1/3", "step2_joint": "1-2/3",
        "step3": "3/3", "step3_set1": "1/3", "step3_set2": "2/3", "step3_joint": "1-3/3",
    }  # fmt: skip
    place = "/out/incremental/train/emoji_groups/set_{}_of_3/shots_4/CoOp/emoji/seed2"
    starts = {part: cfg.TRAIN.INIT_FROM for part, (cfg, _) in seen.items() if cfg.TRAIN.INIT_FROM}
    assert starts == {"step2": place.format(1), "step3": place.format(2)}
    for part, (cfg, args) in seen.items():
        assert cfg.DATASET.NUM_SHOTS == 4
        assert args.eval_only == ("_" in part)
        assert args.model_dir == (place.format(part[4]) if "_" in part else None)


def test_options_of_a_step(load):
    method = {"name": "CoOp", "when": [{"parts": ["step2"], "options": {"OPTIM.LR": 0.25}}]}
    changed = [run.part for run in expand(load(methods=[method])) if understood(run)[0].OPTIM.LR == 0.25]
    assert changed == ["step2"]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"sets": None}, "sets is missing, task incremental needs it"),
        ({"sets": 1}, "sets is 1, expected a number of sets of classes from 2"),
        ({"sets": "3"}, "sets is '3', expected a number"),
        ({"sets": True}, "sets is True, expected a number"),
        ({"task": "few_shot"}, "unknown key 'sets' of task few_shot"),
        ({"methods": [{"name": "CoOp", "when": [{"parts": ["step4"]}]}]}, "part 'step4', expected step1, step2"),
    ],
)  # fmt: skip
def test_faults_are_explained(load, entries, expected):
    with pytest.raises(RecipeError, match=expected):
        load(**entries)


@pytest.mark.parametrize("sets", ["1", "3x"])
def test_script_refuses_wrong_numbers_of_sets(sets):
    command = ["bash", str(ROOT / "scripts" / "incremental.sh"), "CoOp", "emoji_groups", "4", "1", sets]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"SETS is '{sets}', expected a number" in done.stderr


@pytest.fixture
def tiny(load, tmp_path, few_emoji, pictures_root):
    """tiny(method) -> its runs with three steps on one style of emoji and a tiny CLIP with random weights."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "image_resolution": 64, "vision_patch_size": 32, "context_length": 77, "vocab_size": 2048}
    towers = {"vision_layers": 1, "vision_width": 64, "transformer_width": 32, "transformer_layers": 1}
    clip.save_model(clip.CLIP(**sizes, **towers, vision_heads=1, transformer_heads=1), tmp_path / "tiny.safetensors")
    config = {
        "DATASET": {"SOURCE_DOMAINS": ["openmoji"], "TARGET_DOMAINS": ["openmoji"]},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 32}, "TEST": {"BATCH_SIZE": 100}},
        "INPUT": {"SIZE": [64, 64], "TRANSFORMS": ["normalize"]},
        "MODEL": {"BACKBONE": {"NAME": str(tmp_path / "tiny.safetensors")}},
        "OPTIM": {"NAME": "sgd", "LR": 0.02, "MAX_EPOCH": 1},
        "TRAINER": {"COOP": {"N_CTX": 2}, "LAMM": {"UNSEEN": "words"}},
    }
    config["DATASET"]["CACHE_DIR"] = str(tmp_path / "cache")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))

    def make(method, **options):
        entry = {"name": method, "config": str(tmp_path / "tiny.yaml"), "options": options}
        entry["variant"] = "own" if options else ""
        recipe = load(methods=[entry], shots=1)
        return recipe, expand(recipe, root=pictures_root, output=tmp_path / "out")

    return make


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CoOpLAMM", "ZeroshotCLIP"])
def test_from_end_to_end(tiny, method):
    recipe, runs = tiny(method)
    results = {run.part: train.run(run.argv) for run in runs}
    counts = {part: result["counts"]["classes"] for part, result in results.items()}
    assert counts == {"step1": 5, "step2": 5, "step2_set1": 5, "step2_joint": 10, "step3": 5,
                      "step3_set1": 5, "step3_set2": 5, "step3_joint": 15}  # fmt: skip
    accuracy = {part: result["accuracy"] for part, result in results.items()}
    report = build_report(recipe, runs, read_runs(runs), PublishedTable([]))
    assert not report.missing
    tables = {block.metric: block for block in report.blocks}
    found = {metric: table.cells[method, "step 3"].summary.mean for metric, table in tables.items()}
    assert found["current"] == pytest.approx(accuracy["step3"])
    assert found["old"] == pytest.approx((accuracy["step3_set1"] + accuracy["step3_set2"]) / 2)
    assert found["joint"] == pytest.approx(accuracy["step3_joint"])
    before = (accuracy["step1"] + accuracy["step2"]) / 2
    assert found["forgetting"] == pytest.approx(before - found["old"])
    if method == "ZeroshotCLIP":
        assert found["forgetting"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("CoOp", {"TRAINER.COOP.CSC": True}), ("TipAdapter", {}), ("LAMM", {"TRAINER.LAMM.UNSEEN": "refuse"})],
)
def test_what_belongs_to_classes_does_not_move(tiny, method, options):
    _, (first, second, *_) = tiny(method, **options)
    train.run(first.argv)
    expected = rf"{method} cannot start from this run \(TRAIN.INIT_FROM\): .*trained on other classes.* belongs to its"
    with pytest.raises(ValueError, match=expected) as caught:
        train.run(second.argv)
    assert ("TRAINER.LAMM.UNSEEN words" in str(caught.value)) == (method == "LAMM")
