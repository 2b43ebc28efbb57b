"""What the shell scripts make of their arguments, with a stand-in for Python that only shows them."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import train
from dassl.config import get_cfg_default

ROOT = Path(train.__file__).parent
SCRIPTS = (
    "few_shot",
    "base2new_train",
    "base2new_test",
    "cross_dataset_train",
    "cross_dataset_test",
    "domain_generalization",
)


@pytest.fixture
def call(tmp_path):
    """call(script, *arguments, **environment) -> (finished process, the command lines train.py was given)."""
    shown = tmp_path / "shown"
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" END >> {shown}\n')
    python.chmod(0o755)

    def start(script, *arguments, **environment):
        shown.unlink(missing_ok=True)
        clean = {
            name: value for name, value in os.environ.items() if name not in ("CFG", "METHOD", "SHOTS", "OUT", "DATA")
        }
        variables = {**clean, "PYTHON": str(python), "OUTPUT": str(tmp_path / "output"), **environment}
        command = ["bash", str(ROOT / "scripts" / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path)
        lines = shown.read_text().split("END\n")[:-1] if shown.exists() else []
        return done, [line.splitlines() for line in lines]

    return start


def understood(command):
    """The config and the flags, as train.py understands them, of what a script called."""
    place = next(i for i, item in enumerate(command) if item.endswith("train.py"))
    args = train.build_parser().parse_args(command[place + 1 :])
    cfg = get_cfg_default()
    train.add_trainer_defaults(cfg)
    cfg.merge_from_file(args.dataset_config_file)
    cfg.merge_from_list(args.opts)
    return args, cfg


def test_run_names_everything(call, tmp_path):
    done, (command,) = call("run.sh", "CoOp", "vit_b16_few_shot", "emoji_groups", 3, "DATASET.NUM_SHOTS", 4)
    assert done.returncode == 0
    args, cfg = understood(command)
    assert Path(command[0]) == ROOT / "train.py"
    assert (args.trainer, args.seed, args.root) == ("CoOp", 3, str(ROOT / "data"))
    assert Path(args.config_file) == ROOT / "configs/trainers/CoOp/vit_b16_few_shot.yaml"
    assert (cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS) == ("EmojiGroups", 4)
    folder = "run/emoji_groups/shots_4/CoOp/vit_b16_few_shot/seed3"
    assert Path(args.output_dir) == tmp_path / "output" / folder


def test_run_keeps_flags_spaces_and_folders_apart(call, tmp_path):
    own = tmp_path / "my set.yaml"
    own.write_text("DATASET: {NAME: Mine}\n")
    arguments = ("--eval-only", "--model-dir", "a b", "DATASET.SUBSAMPLE_CLASSES", "new", "INPUT.TEMPLATE", "a {} b")
    _, (command,) = call("run.sh", "CoOp", "vit_b16_few_shot", own, 1, *arguments, DATA="/my data")
    args, cfg = understood(command)
    assert (args.eval_only, args.model_dir, args.root) == (True, "a b", "/my data")
    assert (cfg.DATASET.NAME, cfg.INPUT.TEMPLATE) == ("Mine", "a {} b")
    assert Path(args.output_dir).parts[-6:] == ("run", "my set", "shots_all_new", "CoOp", "vit_b16_few_shot", "seed1")
    _, (command,) = call("run.sh", "CoOp", "vit_b16_few_shot", own, 1, OUT="elsewhere", PROCESSES="2")
    assert command[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert understood(command)[0].output_dir == "elsewhere"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("CoOp", "no_such", "emoji_groups", 1), "configs/trainers/CoOp has: .*vit_b16_few_shot"),
        (("CoOp", "vit_b16_few_shot", "no_such", 1), "configs/datasets has: .*emoji_groups"),
        (("NoSuch", "vit_b16_few_shot", "emoji_groups", 1), "configs/trainers/NoSuch has: nothing"),
        (("CoOp", "vit_b16_few_shot", "emoji_groups"), "usage: bash scripts/run.sh METHOD CONFIG DATASET SEED"),
    ],
)
def test_run_explains_what_is_wrong(call, arguments, expected):
    done, commands = call("run.sh", *arguments)
    assert (done.returncode, commands) == (2, [])
    assert re.search(expected, done.stderr)


@pytest.mark.parametrize("name", SCRIPTS)
def test_missing_arguments_show_the_usage(call, name):
    done, commands = call(f"align/{name}.sh")
    assert (done.returncode, commands) == (2, [])
    assert done.stderr.startswith("usage: ")
    assert f"scripts/align/{name}.sh" in done.stderr
    done, commands = call(f"align/{name}.sh", "emoji_groups", "four", "five", CFG="vit_b16_few_shot")
    assert (done.returncode, commands) == (2, [])
    assert "expected a number" in done.stderr


def test_few_shot(call, tmp_path):
    _, (command,) = call("align/few_shot.sh", "emoji_groups", 4, 2, "OPTIM.LR", 0.1)
    args, cfg = understood(command)
    assert (args.trainer, args.seed, cfg.DATASET.NUM_SHOTS, cfg.OPTIM.LR) == ("ALIGN", 2, 4, 0.1)
    assert Path(args.config_file).name == "emoji.yaml"
    assert Path(args.output_dir) == tmp_path / "output/few_shot/emoji_groups/shots_4/ALIGN/emoji/seed2"
    _, (command,) = call("align/few_shot.sh", "emoji_groups", 4, 2, METHOD="CoOp", CFG="vit_b16_few_shot")
    args, _ = understood(command)
    assert (args.trainer, Path(args.config_file).name) == ("CoOp", "vit_b16_few_shot.yaml")


def test_base_to_new_tests_what_was_trained(call, tmp_path):
    options = {"CFG": "vit_b16_base2new"}
    _, (command,) = call("align/base2new_train.sh", "emoji_groups", 1, **options)
    trained, cfg = understood(command)
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.NUM_SHOTS, trained.eval_only) == ("base", 16, False)
    _, (command,) = call("align/base2new_test.sh", "emoji_groups", 1, **options)
    args, cfg = understood(command)
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.NUM_SHOTS, args.eval_only) == ("new", 16, True)
    assert (args.model_dir, args.load_epoch) == (trained.output_dir, None)
    assert (
        Path(args.output_dir)
        == tmp_path / "output/base2new/test_new/emoji_groups/shots_16/ALIGN/vit_b16_base2new/seed1"
    )
    _, (command,) = call("align/base2new_test.sh", "emoji_groups", 1, SHOTS="4", SUB="base", LOADEP="15", **options)
    args, cfg = understood(command)
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.NUM_SHOTS, args.load_epoch) == ("base", 4, 15)
    assert "/shots_4/" in args.model_dir
    assert args.model_dir.endswith("/vit_b16_base2new/seed1")
    assert args.output_dir.endswith("/vit_b16_base2new_epoch_15/seed1")


def test_cross_dataset_tests_what_was_trained(call):
    options = {"CFG": "vit_b16_cross_dataset"}
    source = ROOT / "configs" / "datasets" / "imagenet.yaml"
    _, commands = call("align/cross_dataset_train.sh", 2, **options)
    if source.exists():
        args, cfg = understood(commands[0])
        assert (cfg.DATASET.NAME, args.seed) == ("ImageNet", 2)
    _, (command,) = call("align/cross_dataset_train.sh", "emoji_groups", 2, **options)
    trained, cfg = understood(command)
    assert (cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS, trained.seed) == ("EmojiGroups", 16, 2)
    _, (command,) = call("align/cross_dataset_test.sh", "emoji_animals", 2, **options)
    args, cfg = understood(command)
    assert (cfg.DATASET.NAME, args.eval_only, args.model_dir) == ("EmojiAnimals", True, trained.output_dir)
    assert args.output_dir != trained.output_dir


def test_domain_generalization_tests_what_was_trained(call):
    options = {"CFG": "vit_b16_cross_dataset"}
    _, (command,) = call("align/cross_dataset_train.sh", "emoji_groups", 1, DOMAIN="openmoji", **options)
    trained, cfg = understood(command)
    assert cfg.DATASET.SOURCE_DOMAINS == cfg.DATASET.TARGET_DOMAINS == ("openmoji",)
    done, commands = call("align/domain_generalization.sh", "all", 1, SOURCE="emoji_groups", **options)
    assert done.returncode == 0, done.stderr
    seen = [understood(command) for command in commands]
    styles = ["openmoji-black", "fluent-flat", "fluent-hc", "fluent-3d", "streamline"]
    assert [cfg.DATASET.TARGET_DOMAINS for _, cfg in seen] == [(style,) for style in styles]
    assert {cfg.DATASET.SOURCE_DOMAINS for _, cfg in seen} == {("openmoji",)}
    assert {args.model_dir for args, _ in seen} == {trained.output_dir}
    assert len({args.output_dir for args, _ in seen}) == 5
    _, (command,) = call(
        "align/domain_generalization.sh", "fluent-hc", 1, "OPTIM.LR", 0.5, SOURCE="emoji_groups", **options
    )
    args, cfg = understood(command)
    assert (cfg.DATASET.TARGET_DOMAINS, cfg.OPTIM.LR, args.eval_only) == (("fluent-hc",), 0.5, True)


def test_domain_generalization_of_imagenet(call):
    done, commands = call("align/domain_generalization.sh", "imagenet_r", 1, CFG="vit_b16_cross_dataset")
    if not (ROOT / "configs" / "datasets" / "imagenet_r.yaml").exists():
        assert (done.returncode, commands) == (2, [])
        return
    args, cfg = understood(commands[0])
    assert cfg.DATASET.NAME == "ImageNetR"
    assert "/cross_dataset/train/imagenet/" in args.model_dir
