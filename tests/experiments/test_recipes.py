"""Recipes: what they stand for, that every one of the project fits what there is, and their errors."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

import train
from dassl.config.files import config_exists
from experiments import RECIPES, RecipeError, expand, load_recipe, with_needs

FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.stem != "ledger")
TABLE = {
    "task": "few_shot",
    "config": "emoji",
    "datasets": ["emoji_groups"],
    "shots": [1, 4],
    "seeds": [1, 2],
    "methods": ["CoOp", {"name": "CLIP", "trainer": "ZeroshotCLIP", "shots": 0, "seeds": 1}],
}


@pytest.fixture
def load(tmp_path):
    """load(**entries): a recipe like TABLE with other entries; None removes one."""

    def make(**entries):
        content = {key: value for key, value in {**TABLE, **entries}.items() if value is not None}
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_recipe(path)

    return make


@pytest.fixture
def runs_of(load, tmp_path):
    return lambda **entries: expand(load(**entries), root="/data", output="/out")


def understood(run):
    """The config and the flags, as train.py understands the command of a run."""
    args = train.build_parser().parse_args(list(run.argv))
    return train.build_config(args), args


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_fits_what_there_is(path):
    runs = expand(load_recipe(path), root="/data", output="/out")
    assert len({run.key for run in runs}) == len({run.output_dir for run in runs}) == len(runs)
    known = set()
    for run in runs:
        assert set(run.needs) <= known
        known.add(run.key)
    seen = set()
    for run in runs:
        what = (run.method, run.dataset, run.part, run.shots)
        if what not in seen:  # seeds change nothing else
            seen.add(what)
            for flag in ("--dataset-config-file", "--config-file"):
                assert config_exists(run.argv[run.argv.index(flag) + 1])
    for run in {run.trainer: run for run in runs}.values():
        cfg, args = understood(run)
        assert (cfg.TRAINER.NAME, cfg.SEED, args.output_dir) == (run.trainer, run.seed, str(run.output_dir))
        assert args.eval_only == bool(re.fullmatch(r"new|target|step\d+_.*", run.part))


@pytest.mark.parametrize("setting", ["base_to_new", "few_shot", "cross_dataset", "domain_generalization"])
def test_align_appears_with_both_scores_and_the_uniform_plan(setting):
    for table in ("align", "embedded"):
        runs = [run for run in expand(load_recipe(f"{table}_{setting}")) if run.trainer == "ALIGN"]
        first = {run.method: run for run in reversed(runs)}
        options = {name: understood(run)[0].TRAINER.ALIGN for name, run in first.items()}
        chosen = {name: (node.SCORE, node.PLAN) for name, node in options.items()}
        assert chosen == {
            "ALIGN (paper)": ("paper", "learned"),
            "ALIGN (released)": ("released", "learned"),
            "ALIGN (uniform plan)": ("paper", "uniform"),
        }
        assert len({(run.method, run.config, run.output_dir.parent) for run in runs}) == len(
            {run.output_dir.parent for run in runs}
        )


def test_few_shot(runs_of):
    runs = runs_of()
    assert Counter((run.method, run.shots) for run in runs) == {("CoOp", 1): 2, ("CoOp", 4): 2, ("CLIP", 0): 1}
    assert [run.seed for run in runs] == [1, 1, 1, 2, 2]
    run = next(run for run in runs if run.shots == 4 and run.seed == 2)
    assert run.key == "few_shot/emoji_groups/shots_4/CoOp/emoji/seed2"
    assert run.output_dir == Path("/out") / run.key
    assert (run.task, run.trainer, run.config, run.dataset) == ("few_shot", "CoOp", "emoji", "emoji_groups")
    assert (run.part, run.needs) == ("all", ())
    cfg, args = understood(run)
    assert (cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.DATASET.ROOT) == ("EmojiGroups", 4, 2, "/data")
    assert (cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, args.eval_only) == ("CoOp", "emoji-ViT-S/8", False)


def test_base_to_new(runs_of):
    runs = runs_of(task="base2new", shots=16)
    pairs = [run for run in runs if run.method == "CoOp" and run.seed == 1]
    base, new = pairs
    assert base.key == "base2new/train_base/emoji_groups/shots_16/CoOp/emoji/seed1"
    assert new.key == "base2new/test_new/emoji_groups/shots_16/CoOp/emoji/seed1"
    assert (base.part, new.part, new.needs) == ("base", "new", (base.key,))
    for run, half in ((base, "base"), (new, "new")):
        cfg, args = understood(run)
        assert half == cfg.DATASET.SUBSAMPLE_CLASSES
        assert cfg.DATASET.NUM_SHOTS == 16
        assert args.model_dir == (None if half == "base" else str(base.output_dir))


def test_cross_dataset(runs_of):
    runs = runs_of(
        task="cross_dataset", datasets=None, source="emoji_groups", targets=["emoji_food", "digits"], seeds=3, shots=8,
        methods=["CoOp"],
    )  # fmt: skip
    assert [(run.dataset, run.part) for run in runs] == [
        ("emoji_groups", "source"),
        ("emoji_food", "target"),
        ("digits", "target"),
    ]
    assert runs[0].key == "cross_dataset/train/emoji_groups/shots_8/CoOp/emoji/seed3"
    assert runs[2].key == "cross_dataset/test/digits/shots_8/CoOp/emoji/seed3"
    assert runs[1].needs == runs[2].needs == (runs[0].key,)
    cfg, args = understood(runs[2])
    assert (cfg.DATASET.NAME, args.eval_only, args.model_dir) == ("Digits", True, str(runs[0].output_dir))


def test_domain_generalization_over_styles(runs_of):
    entries = {"datasets": None, "source": "emoji_groups", "shots": 16, "seeds": 1, "methods": ["CoOp"]}
    source, target = runs_of(task="domain_generalization", domain="openmoji", targets=["fluent-hc"], **entries)
    assert (source.dataset, target.dataset) == ("emoji_groups_openmoji", "emoji_groups_fluent-hc")
    assert source.key == "cross_dataset/train/emoji_groups_openmoji/shots_16/CoOp/emoji/seed1"
    assert target.key == "domain_generalization/emoji_groups_fluent-hc/shots_16/CoOp/emoji/seed1"
    assert understood(source)[0].DATASET.TARGET_DOMAINS == ("openmoji",)
    cfg, args = understood(target)
    assert (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS) == (("openmoji",), ("fluent-hc",))
    assert args.model_dir == str(source.output_dir)


def test_domain_generalization_over_data_sets_shares_the_source():
    tested = expand(load_recipe("align_domain_generalization"), output="/out")
    moved = {run.key: run for run in expand(load_recipe("align_cross_dataset"), output="/out")}
    sources = [run for run in tested if run.part == "source"]
    assert sources
    assert all(moved[run.key].argv == run.argv for run in sources)
    targets = {run.dataset for run in tested if run.part == "target"}
    assert targets == {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}


def test_options_by_shots_data_set_and_part(runs_of):
    method = {
        "name": "CoOp",
        "variant": "long",
        "options": {"OPTIM.MAX_EPOCH": 7, "OPTIM.LR": 0.5},
        "when": [
            {"shots": 1, "options": {"OPTIM.MAX_EPOCH": 8}},
            {"datasets": ["digits"], "shots": [4], "options": {"OPTIM.MAX_EPOCH": 9}},
        ],
    }
    runs = runs_of(methods=[method], datasets=["emoji_groups", "digits"], seeds=1)
    found = {(run.dataset, run.shots): understood(run)[0].OPTIM for run in runs}
    assert {key: node.MAX_EPOCH for key, node in found.items()} == {
        ("emoji_groups", 1): 8,
        ("digits", 1): 8,
        ("emoji_groups", 4): 7,
        ("digits", 4): 9,
    }
    assert {node.LR for node in found.values()} == {0.5}
    assert all("/CoOp/emoji_long/" in run.key for run in runs)
    method = {"name": "CoOp", "when": [{"parts": ["new"], "options": {"OPTIM.LR": 0.25}}]}
    runs = runs_of(task="base2new", methods=[method], seeds=1, shots=1)
    assert [understood(run)[0].OPTIM.LR for run in runs] == [0.002, 0.25]


def test_needs_come_along(runs_of):
    runs = runs_of(task="base2new", shots=1)
    chosen = [run for run in runs if run.part == "new" and run.seed == 2]
    assert with_needs(chosen, runs) == [run for run in runs if run.seed == 2]


def test_places_come_from_the_environment(load, monkeypatch):
    monkeypatch.setenv("DATA", "/my/data")
    monkeypatch.setenv("OUTPUT", "/my/output")
    run = expand(load())[0]
    assert run.output_dir == Path("/my/output") / run.key
    assert run.argv[:2] == ("--root", "/my/data")


PLOTPP = {
    "name": "Two stages",
    "trainer": "PLOTPP",
    "first": {
        "config": str(Path("configs/trainers/PLOTPP/emoji.yaml").absolute()),
        "option": "TRAINER.PLOTPP.PRETRAIN_DIR",
    },
}


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ({}, ["first", "all"]),
        ({"task": "base2new"}, ["first", "base", "new"]),
        ({"task": "cross_dataset", "datasets": None, "source": "emoji_groups", "targets": ["digits", "emoji_food"]},
         ["first", "source", "target", "target"]),
    ],
)  # fmt: skip
def test_a_first_stage_is_a_run_before(runs_of, tmp_path, setting, parts):
    stage = tmp_path / "own_stage.yaml"
    stage.write_text("TRAINER: {PLOTPP: {MODEL_UPD: vision}}\n")
    method = {
        **PLOTPP,
        "first": {**PLOTPP["first"], "config": str(stage)},
        "variant": "v",
        "options": {"OPTIM.LR": 0.5},
    }
    first, second, *others = runs = runs_of(methods=[method], shots=2, seeds=3, **setting)
    assert [run.part for run in runs] == parts
    assert "/PLOTPP/own_stage_v/seed3" in first.key
    assert "/PLOTPP/emoji_v/seed3" in second.key
    assert (first.needs, second.needs) == ((), (first.key,))
    assert all(run.needs == (second.key,) for run in others)
    options = [understood(run)[0] for run in runs]
    assert [cfg.TRAINER.PLOTPP.MODEL_UPD for cfg in options[:2]] == ["vision", "joint"]
    assert [cfg.TRAINER.PLOTPP.PRETRAIN_DIR for cfg in options] == ["", str(first.output_dir), *[""] * len(others)]
    assert {cfg.OPTIM.LR for cfg in options} == {0.5}
    assert with_needs(runs[-1:], runs) == ([first, second, runs[-1]] if others else runs)


def test_imports_are_passed_on(runs_of, tmp_path):
    own = tmp_path / "own_method.py"
    own.write_text(
        "from dassl.engine import TRAINER_REGISTRY, TrainerX\n"
        "@TRAINER_REGISTRY.register(force=True)\nclass RecipeOwn(TrainerX):\n    pass\n"
    )
    config = tmp_path / "own.yaml"
    config.write_text("OPTIM: {LR: 0.125}\n")
    runs = runs_of(imports=[str(own)], methods=[{"name": "RecipeOwn", "config": str(config)}], shots=2, seeds=0)
    assert runs[0].key == "few_shot/emoji_groups/shots_2/RecipeOwn/own/seed0"
    cfg, args = understood(runs[0])
    assert (args.imports, cfg.OPTIM.LR) == ([str(own)], 0.125)


@pytest.mark.parametrize("by_config", [False, True])
def test_options_may_be_keys_that_an_import_brings_along(load, tmp_path, by_config):
    """By `imports` of the recipe, or by IMPORTS of the method's config."""
    own = tmp_path / f"own_keys_{by_config}.py"
    own.write_text(
        "from yacs.config import CfgNode\n"
        "def extend_cfg(cfg):\n    cfg.TRAINER.RECIPE_KEYS = CfgNode({'STRENGTH': 1.0})\n"
    )
    config = tmp_path / "own.yaml"
    config.write_text(f"IMPORTS: [{own}]\n" if by_config else "OPTIM: {LR: 0.125}\n")
    imports = None if by_config else [str(own)]

    def method(key):
        when = [{"shots": 1, "options": {f"TRAINER.RECIPE_KEYS.{key}": 0.5}}]
        options = {f"TRAINER.RECIPE_KEYS.{key}": 2.5}
        return {"name": "CoOp", "config": str(config), "variant": "strong", "options": options, "when": when}

    recipe = load(imports=imports, methods=[method("STRENGTH")])
    assert recipe.methods[0].options_for(1, "emoji_groups", "all") == ("TRAINER.RECIPE_KEYS.STRENGTH", "0.5")
    with pytest.raises(RecipeError, match=r"TRAINER\.RECIPE_KEYS\.WEAKNESS"):
        load(imports=imports, methods=[method("WEAKNESS")])


TRANSFER = {"task": "cross_dataset", "datasets": None, "source": "digits"}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"task": "no_such"}, "task is 'no_such', expected one of few_shot, base2new"),
        ({"seed": 1}, "unknown key 'seed' of task few_shot"),
        ({"methods": [{**PLOTPP, "first": "stage1"}]}, "first of method Two stages is 'stage1', expected config: NAME"),
        ({"methods": [{**PLOTPP, "first": {"config": "no", "option": "X.Y"}}]}, "there is no config 'no'"),
        ({"methods": [{**PLOTPP, "first": {**PLOTPP["first"], "option": "X.Y"}}]}, "X.Y"),
        ({"task": "incremental", "sets": 2, "methods": [PLOTPP]}, "first is not possible in task incremental"),
        ({"targets": ["digits"]}, "unknown key 'targets' of task few_shot"),
        ({"datasets": None}, "datasets is missing, task few_shot needs it"),
        ({"datasets": ["no_such"]}, "no config 'no_such' in configs/datasets, which has .*emoji_groups"),
        ({"datasets": "digits"}, "datasets is 'digits', expected a list of names"),
        ({"datasets": ["digits", "digits"]}, "datasets has 'digits' more than once"),
        ({"shots": [1, "four"]}, r"shots is \[1, 'four'\], expected numbers of images per class"),
        ({"shots": [-1]}, r"shots is \[-1\]"),
        ({"shots": True}, "shots is True"),
        ({"shots": []}, r"shots is \[\]"),
        ({"shots": None}, "shots is missing for method CoOp"),
        ({"seeds": [1, 1]}, "seeds has 1 more than once"),
        ({"config": "no_such"}, "no config 'no_such' in configs/trainers/CoOp, which has emoji"),
        ({"config": None}, "config is missing of method CoOp"),
        ({"methods": ["NoSuch"]}, r"no trainer 'NoSuch' \(of method NoSuch\), known are ALIGN"),
        ({"methods": []}, "methods is missing or empty"),
        ({"methods": [{"trainer": "CoOp"}]}, "expected a name or keys and values with a name"),
        ({"methods": ["CoOp", "CoOp"]}, "methods has 'CoOp' more than once"),
        ({"methods": [{"name": "CoOp", "lr": 1}]}, "unknown key 'lr' of method CoOp"),
        ({"methods": [{"name": "CoOp", "options": {"OPTIM.LR": 1}}]}, "options and no variant"),
        ({"methods": [{"name": "CoOp", "variant": "a", "options": {"OPTIM.NO": 1}}]}, "OPTIM.NO"),
        ({"methods": [{"name": "CoOp", "when": [{"shot": 1}]}]}, "unknown key 'shot' in when of method CoOp"),
        ({"methods": [{"name": "CoOp", "when": [{"parts": ["new"]}]}]}, "part 'new', expected all"),
        ({"methods": [{"name": "CoOp", "when": [{"datasets": ["x"]}]}]}, "no config 'x' in configs/datasets"),
        ({"published": {"file": "no_such.csv"}}, "no table 'no_such.csv' in experiments/reports/published"),
        ({"published": {"file": "README.md"}}, "no table 'README.md' in experiments/reports/published"),
        ({"task": ["few_shot"]}, r"task is \['few_shot'\], expected one of few_shot"),
        ({"config": ""}, "config is missing of method CoOp"),
        ({"methods": [{"name": " ", "trainer": "CoOp"}]}, "with a name"),
        ({"methods": [{"name": "CoOp", "variant": "../x"}]}, r"variant of method CoOp is '\.\./x', expected a part of"),
        ({"methods": [{"name": "CoOp", "variant": "a", "options": {"SEED": 1}}]}, "SEED is decided by the recipe"),
        ({"datasets": ["digits", "configs/datasets/digits.yaml"]}, "without their folders, has 'digits' more than"),
        ({"task": "incremental", "shots": 1, "sets": 10**30}, "sets is 10+, expected .* from 2 to 100"),
        ({**TRANSFER, "targets": ["dtd", "digits"]}, "targets has 'digits', which is what is trained on"),
        ({**TRANSFER, "task": "domain_generalization", "domain": "a", "targets": ["a"]}, "targets has 'a', which is"),
        ({**TRANSFER, "domain": "a", "targets": ["no_such"]}, "targets: there is no config 'no_such'"),
        ({"published": {"place": "x"}}, "unknown key 'place' of published"),
        ({"task": "base2new", "joint": 1}, "joint is 1, expected true or false"),
        ({"joint": True}, "unknown key 'joint' of task few_shot"),
        ({"imports": ["no_such_module_at_all"]}, "cannot import 'no_such_module_at_all'"),
        ({"task": "cross_dataset", "datasets": None}, "source is missing.*targets is missing"),
    ],
)  # fmt: skip
def test_faults_are_explained(load, entries, expected):
    with pytest.raises(RecipeError, match=expected):
        load(**entries)


def test_all_faults_are_shown_at_once(load):
    with pytest.raises(RecipeError, match=r"'seed'.*'no_such'.*'NoSuch'"):
        load(seed=1, datasets=["no_such"], methods=["NoSuch"])


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no recipe "no_such"; recipes has: .*embedded_few_shot'):
        load_recipe("no_such")
    for text in ("- a list\n", "task: [\n", ""):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(RecipeError, match=r"odd\.yaml"):
            load_recipe(tmp_path / "odd.yaml")


def test_a_key_that_stands_twice_is_a_fault(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text(
        "task: few_shot\nconfig: emoji\ndatasets: [digits]\nshots: 1\nseeds: [1]\nseeds: [2]\n"
        "methods:\n  - CoOp\n  - {name: A, trainer: CoOp, variant: a, variant: b}\n"
    )
    with pytest.raises(RecipeError, match=r"line 1: .* has 'seeds' more than once; line 9: .* has 'variant' more than"):
        load_recipe(path)
    path.write_text("task: &a [*a]\n")
    with pytest.raises(RecipeError, match="line 1 refers to itself"):
        load_recipe(path)


def test_methods_never_share_a_folder(runs_of):
    other = {"name": "Other", "trainer": "CoOp"}
    with pytest.raises(RecipeError, match=r"CoOp and Other would both use the folder .*; give one of them a variant"):
        runs_of(methods=["CoOp", other])


def test_a_recipe_like_another_takes_its_entries(tmp_path):
    table = {**TABLE, "variant": "a", "options": {"OPTIM.LR": 0.1}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    path = tmp_path / "other.yaml"
    own = {"name": "MaPLe", "variant": "slow", "options": {"OPTIM.LR": 0.2}}
    more = {"like": "table.yaml", "seeds": [7], "variant": "b", "methods": ["CLIP", "KgCoOp", own]}
    path.write_text(yaml.safe_dump({**more, "options": {"OPTIM.LR": 0.3, "OPTIM.MAX_EPOCH": 2}}))
    recipe = load_recipe(path)
    assert recipe.datasets == ("emoji_groups",)
    assert [(m.name, m.trainer, m.shots, m.seeds, m.folder) for m in recipe.methods] == [
        ("CLIP", "ZeroshotCLIP", (0,), (1,), "emoji_b"),
        ("KgCoOp", "KgCoOp", (1, 4), (7,), "emoji_b"),
        ("MaPLe", "MaPLe", (1, 4), (7,), "emoji_b_slow"),
    ]
    assert dict(recipe.methods[0].options) == {"OPTIM.LR": "0.3", "OPTIM.MAX_EPOCH": "2"}
    assert dict(recipe.methods[2].options) == {"OPTIM.LR": "0.2", "OPTIM.MAX_EPOCH": "2"}
    for like in ("none.yaml", "other.yaml"):
        path.write_text(yaml.safe_dump({"like": like}))
        with pytest.raises(RecipeError, match=f"like is '{like}', expected a recipe file beside it"):
            load_recipe(path)
    path.write_text(yaml.safe_dump({"like": "table.yaml", "options": ["OPTIM.LR"]}))
    with pytest.raises(RecipeError, match="options is"):
        load_recipe(path)
