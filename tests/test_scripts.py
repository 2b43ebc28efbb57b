"""Arguments that the shell scripts pass on, with a stand-in for Python that only shows them."""

import http.server
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import train
from dassl.config import get_cfg_default
from dassl.engine import command as command_module
from dassl.utils import write_json

ROOT = Path(train.__file__).parent
VARIABLES = {"CFG", "METHOD", "METHODS", "SHOTS", "SEEDS", "SOURCE", "DOMAIN", "SUB", "LOADEP", "OUT", "DATA"}
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
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
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
    command_module.add_trainer_defaults(cfg)
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
        (
            ("NoSuch", "vit_b16_few_shot", "emoji_groups", 1),
            "METHOD is 'NoSuch', expected one of ALIGN .*ZeroshotCLIP ",
        ),
        (("CoOp", "vit_b16_few_shot", "emoji_groups"), "usage: bash scripts/run.sh METHOD CONFIG DATASET SEED"),
    ],
)
def test_run_explains_what_is_wrong(call, arguments, expected):
    done, commands = call("run.sh", *arguments)
    assert (done.returncode, commands) == (2, [])
    assert re.search(expected, done.stderr)


def test_train_names_the_data_sets_there_are(call):
    """Data sets need no file, so that train.py and not the script knows them."""
    _, (command,) = call("run.sh", "CoOp", "vit_b16_few_shot", "no_such", 1)
    with pytest.raises(FileNotFoundError, match=r"no_such.*has: .*caltech101 .*emoji_groups"):
        understood(command)


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
    _, commands = call("align/cross_dataset_train.sh", 2, **options)
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
    assert done.returncode == 0
    args, cfg = understood(commands[0])
    assert cfg.DATASET.NAME == "ImageNetR"
    assert "/cross_dataset/train/imagenet/" in args.model_dir


GENERIC = ("few_shot", "base2new", "cross_dataset", "domain_generalization", "incremental")
ALIGN = tuple(f"align/{name}.sh" for name in SCRIPTS)
RELEASED = (
    *(f"{method} {name}" for method in ("cocoop", "coop") for name in ("base2new_train", "base2new_test.sh")),
    *(f"{method} xd_{part}_{method}.sh" for method in ("maple", "ivlp", "vpt") for part in ("train", "test")),
    *(f"{method} few_shot" for method in ("clip_adapter", "kgcoop", "linear_probe", "plotpp", "promptsrc")),
    *("tcp base2new_test", "prograd few_shot", "tip_adapter few_shot.sh", "plot few_shot", "promptsrc xd_test"),
)


def arguments_of(name):
    """Arguments that a thin script takes, by its name."""
    if "few_shot" in name:
        return ("emoji_groups", 4, 2)
    return (2,) if "train" in name and "base2new" not in name else ("emoji_groups", 2)


@pytest.mark.parametrize("name", GENERIC)
def test_generic_scripts_explain_themselves(call, name):
    done, commands = call(f"{name}.sh")
    assert (done.returncode, commands) == (2, [])
    assert done.stderr.startswith("usage: ")
    assert f"scripts/{name}.sh METHOD" in done.stderr
    assert re.search(r"^METHOD: ALIGN .*\bCoOp .*ZeroshotCLIP", done.stderr, flags=re.MULTILINE)
    done, commands = call(f"{name}.sh", "CoOpp", "emoji_groups", 4, 1)
    assert (done.returncode, commands) == (2, [])
    assert re.search(r"error: METHOD is 'CoOpp', expected one of ALIGN .*ZeroshotCLIP", done.stderr)


def test_a_method_without_configs_needs_a_file(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("OPTIM: {LR: 1.0}\n")
    arguments = ("few_shot.sh", "Mine", "emoji_groups", 4, 1, "--import", "mine.py")
    _, (command,) = call(*arguments, CFG=str(tmp_path / "mine.yaml"))
    args, _ = understood(command)
    assert (args.trainer, args.config_file) == ("Mine", str(tmp_path / "mine.yaml"))
    assert args.output_dir.endswith("few_shot/emoji_groups/shots_4/Mine/mine/seed1")
    assert call(*arguments)[0].returncode == 2


def test_both_parts_in_one_call(call):
    _, commands = call("base2new.sh", "CoOp", "emoji_groups", 1, "OPTIM.LR", 0.5)
    (trained, base), (tested, new) = map(understood, commands)
    assert (base.DATASET.SUBSAMPLE_CLASSES, new.DATASET.SUBSAMPLE_CLASSES) == ("base", "new")
    assert (trained.eval_only, tested.eval_only, tested.model_dir) == (False, True, trained.output_dir)
    assert base.OPTIM.LR == new.OPTIM.LR == 0.5
    _, commands = call("cross_dataset.sh", "CoOp", "emoji_animals", 1)
    (trained, source), (tested, target) = map(understood, commands)
    assert (source.DATASET.NAME, target.DATASET.NAME) == ("EmojiGroups", "EmojiAnimals")
    assert (trained.eval_only, tested.model_dir) == (False, trained.output_dir)
    _, commands = call("domain_generalization.sh", "CoOp", "fluent-hc", 1, SOURCE="emoji_groups")
    (trained, source), (tested, target) = map(understood, commands)
    assert source.DATASET.TARGET_DOMAINS == ("openmoji",)
    assert target.DATASET.TARGET_DOMAINS == ("fluent-hc",)
    assert tested.model_dir == trained.output_dir


@pytest.mark.parametrize(("name", "half"), [("train", "base"), ("test", "new")])
def test_one_part(call, name, half):
    _, (command,) = call("base2new.sh", "CoOp", name, "emoji_groups", 1)
    args, cfg = understood(command)
    assert (args.eval_only, cfg.DATASET.SUBSAMPLE_CLASSES) == (name == "test", half)


def test_wrong_variables_are_named(call):
    done, commands = call("base2new.sh", "CoOp", "emoji_groups", 1, SUB="old")
    assert (done.returncode, commands) == (2, [])
    assert "SUB is 'old', expected new or base" in done.stderr
    done, commands = call("cross_dataset.sh", "CoOp", "emoji_animals", 1, DOMAIN="openmoji")
    assert (done.returncode, commands) == (2, [])
    assert "DOMAIN goes with train" in done.stderr


def test_a_config_without_setting_serves_all(call):
    _, commands = call("base2new.sh", "ZeroshotCLIP", "caltech101", 1)
    assert {Path(understood(command)[0].config_file).name for command in commands} == {"vit_b16.yaml"}


@pytest.mark.parametrize("name", [*ALIGN, *(f"compat.sh {name}" for name in RELEASED)])
def test_thin_scripts_name_their_method(call, name, tmp_path):
    """Every one runs with the config at hand; its folder says which method."""
    (tmp_path / "any.yaml").write_text("")
    script = name.split()
    done, commands = call(*script, *arguments_of(name), CFG=str(tmp_path / "any.yaml"), SOURCE="emoji_groups")
    assert done.returncode == 0, done.stderr
    args, cfg = understood(commands[0])
    folder = script[1] if len(script) > 1 else "align"
    assert args.trainer.lower() == folder.replace("_", "")
    assert args.seed == 2
    assert args.eval_only == ("test" in name or "domain" in name)
    if "base2new" in name:
        assert ("new" if "test" in name else "base") == cfg.DATASET.SUBSAMPLE_CLASSES
    done, _ = call(*script)
    assert (done.returncode, f"scripts/{name.removesuffix('.sh').removesuffix(f'_{folder}')}" in done.stderr) == (
        2,
        True,
    )


def test_released_launchers_explain_themselves(call):
    done, commands = call("compat.sh")
    assert (done.returncode, commands) == (2, [])
    assert re.search(r"NAME .*: base2new_train .*zeroshot", done.stderr)
    assert "METHOD is 'coopp', expected one of ALIGN" in call("compat.sh", "coopp", "main")[0].stderr
    assert "NAME is 'fewshot', expected one of base2new_train" in call("compat.sh", "coop", "fewshot")[0].stderr


def test_there_are_few_scripts():
    outside = [path for path in (ROOT / "scripts").rglob("*.sh") if path.parent.name != "align"]
    assert len(outside) <= 21


def test_a_detector_is_trained_with_the_config_of_its_data(call):
    shown = []
    for more in ({}, {"ON": "lvis", "CONFIG": "large", "SEED": "3"}):
        done, commands = call("uta/detect.sh", "student.safetensors", "mine", "OPTIM.MAX_EPOCH", 2, **more)
        assert done.returncode == 0, done.stderr
        place = next(number for number, item in enumerate(commands[0]) if item.endswith("train.py"))
        args = train.build_parser().parse_args(commands[0][place + 1 :])
        assert (args.trainer, args.backbone, args.opts) == (
            "CascadeMaskRCNN",
            "student.safetensors",
            ["OPTIM.MAX_EPOCH", "2"],
        )
        shown.append([Path(item).stem for item in (args.config_file, args.dataset_config_file, args.output_dir)])
    assert shown == [["emoji", "emoji_scenes", "emoji_seed1"], ["lvis_large", "lvis", "lvis_seed3"]]
    done, _ = call("uta/detect.sh", "student.safetensors", "mine", ON="voc")
    assert (done.returncode, "ON is 'voc', expected emoji, coco or lvis" in done.stderr) == (2, True)


def test_a_checkpoint_is_evaluated_in_the_parts_asked_for(call):
    done, commands = call("uta/evaluate.sh", "student.safetensors", "mine", "zeroshot", "probe", SETS="emoji_groups")
    assert done.returncode == 0, done.stderr
    runs = [args for args, _ in map(understood, commands) if args is not None]
    assert {args.trainer for args in runs} == {"ZeroshotCLIP", "LinearProbe"}
    assert {args.backbone for args in runs} == {"student.safetensors"}
    done, _ = call("uta/evaluate.sh")
    assert (done.returncode, "scripts/uta/evaluate.sh" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["coop", "plot", "prograd"])
def test_main_takes_the_arguments_of_coop(call, name, tmp_path):
    (tmp_path / "any.yaml").write_text("")
    done, commands = call(
        "compat.sh", name, "main", "emoji_groups", tmp_path / "any.yaml", "middle", 8, 4, "True", "OPTIM.LR", 0.5
    )
    assert done.returncode == 0, done.stderr
    seen = [understood(command) for command in commands]
    assert [args.seed for args, _ in seen] == [1, 2, 3]
    node = seen[0][1].TRAINER[name.upper()]
    assert (node.N_CTX, node.CSC, node.CLASS_TOKEN_POSITION) == (8, True, "middle")
    assert seen[0][0].output_dir.endswith("_nctx8_cscTrue_ctpmiddle/seed1")
    assert (seen[0][1].DATASET.NUM_SHOTS, seen[0][1].OPTIM.LR) == (4, 0.5)
    done, _ = call("compat.sh", name, "main", "emoji_groups", tmp_path / "any.yaml", "side", 8, 4, "True")
    assert (done.returncode, "CTP is 'side'" in done.stderr) == (2, True)


def test_eval_of_coop_loads_what_main_trained(call):
    _, (command,) = call("compat.sh", "coop", "main.sh", "emoji_groups", "emoji", "end", 16, 16, "False", SEEDS="2")
    trained, _ = understood(command)
    _, (command,) = call("compat.sh", "coop", "eval", "emoji_animals", "emoji", SEEDS="2", SOURCE="emoji_groups")
    args, cfg = understood(command)
    assert (args.eval_only, args.model_dir, cfg.DATASET.NAME) == (True, trained.output_dir, "EmojiAnimals")


def test_zero_shot(call):
    _, (command,) = call("compat.sh", "zsclip", "zeroshot", "emoji_groups", "emoji")
    args, cfg = understood(command)
    assert (args.trainer, cfg.DATASET.NAME, args.eval_only) == ("ZeroshotCLIP", "EmojiGroups", False)


@pytest.mark.parametrize(
    ("methods", "err"),
    [
        ("CoOp MaPLee", "METHODS names 'MaPLee', expected some of ZeroshotCLIP ALIGN .*CoOp"),
        ("ContrastiveCLIP", "METHODS names 'ContrastiveCLIP', expected some of ZeroshotCLIP"),
        (" ", "METHODS is empty, expected some of ZeroshotCLIP"),
    ],
)
def test_quickstart_refuses_bad_names_at_once(call, methods, err):
    done, commands = call("quickstart.sh", METHODS=methods)
    assert (done.returncode, done.stdout, commands) == (2, "", [])
    assert re.search(err, done.stderr)


def test_quickstart_runs_what_it_is_told_once(tmp_path):
    """In a tree that holds what the script reads, with stand-ins for the set-up and for Python."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("configs", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "scripts" / "quickstart.sh").write_text((ROOT / "scripts" / "quickstart.sh").read_text())
    setup = tmp_path / "scripts" / "setup.sh"
    setup.write_text("for i in $(seq 50); do echo Collecting package-$i; done\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/usr/bin/env bash\necho "python $*"\n')
    python.chmod(0o755)

    def start(**variables):
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        command = ["bash", str(tmp_path / "scripts" / "quickstart.sh")]
        return subprocess.run(command, capture_output=True, text=True, env={**clean, **variables})

    first = start()
    sweep, summary = first.stdout.splitlines()
    assert "sweep.py recipes/quickstart.yaml --root data --output output/quickstart --jobs 2" in sweep
    assert sweep.endswith("--only method=ZeroshotCLIP,ALIGN,MaPLe,CoOpLAMM,CoOp")
    assert summary == "python -m tools.quickstart output/quickstart ZeroshotCLIP ALIGN MaPLe CoOpLAMM CoOp"
    assert len(first.stderr.splitlines()) < 6  # of 50 lines of the installation
    assert (tmp_path / "output" / "quickstart" / "install.log").read_text().count("Collecting") == 50
    assert start().stdout.splitlines() == [summary]  # shown again, nothing is run

    again = start(METHODS="CoOp ZeroshotCLIP CoOp").stdout.splitlines()
    assert again[0].endswith("--only method=CoOp,ZeroshotCLIP")
    assert again[1].endswith("tools.quickstart output/quickstart CoOp ZeroshotCLIP")
    (tmp_path / "output" / "quickstart" / "DONE").touch()  # another run is done
    assert len(start(METHODS="CoOp ZeroshotCLIP").stdout.splitlines()) == 2

    setup.write_text("echo PIP SAYS NO; exit 1\n")
    failed = start(METHODS="CoOp")
    assert failed.returncode == 1
    assert "PIP SAYS NO" in failed.stderr
    assert "python" not in failed.stdout


def test_setup_tells_what_a_failed_installation_needs_and_tries_again(tmp_path):
    """In an empty tree, with a stand-in for Python whose pip fails until told otherwise."""
    for name in ("scripts/setup.sh", "requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def setup(pip_exit):
        python.write_text(f"#!/usr/bin/env bash\necho $5 >> {tmp_path}/calls; echo PIP SAYS >&2; exit {pip_exit}\n")
        python.chmod(0o755)
        command, variables = ["bash", "scripts/setup.sh", "dev"], {**os.environ, "TORCH": "cuda"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)

    failed = setup(1)
    assert failed.returncode == 1
    assert re.search(r"PIP SAYS\nerror: pip could not install .*expected .*7 GB.*found [0-9.]+ GB free", failed.stderr)
    assert [setup(0).returncode, setup(0).returncode] == [0, 0]
    assert len((tmp_path / "calls").read_text().splitlines()) == 2  # the third call finds everything installed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have the CPU build as the usual one")
@pytest.mark.parametrize("reached", [True, False])
def test_setup_takes_the_cpu_build_of_torch_where_its_index_can_be_reached(tmp_path, reached):
    for name in ("scripts/setup.sh", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\necho "${{@:5}}" >> {tmp_path}/calls\n')
    python.chmod(0o755)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    index = f"http://127.0.0.1:{server.server_port}"
    if reached:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    variables = {**os.environ, "TORCH_INDEX": index, "TORCH": "cpu", "no_proxy": "127.0.0.1", "PYTHON": sys.executable}
    done = subprocess.run(["bash", "scripts/setup.sh"], cwd=tmp_path, capture_output=True, text=True, env=variables)
    if reached:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == "-r requirements.txt"
    assert [re.sub(r"[>=][^ ]*", "", call) for call in calls[:-1]] == [
        f"--index-url {index} torch torchvision"
    ] * reached
    assert ("cannot be reached" in done.stderr) is not reached
    done = subprocess.run(
        ["bash", "scripts/setup.sh"], cwd=tmp_path, capture_output=True, env={**variables, "TORCH": "x"}
    )
    assert (done.returncode, done.stderr) == (2, b"error: TORCH is 'x', expected cpu or cuda\n")


def test_base2new_ends_with_the_harmonic_mean(call, tmp_path):
    arguments = ("base2new.sh", "CoOp", "emoji_groups", 1)
    done, commands = call(*arguments)
    assert (done.stdout, len(commands)) == ("", 2)  # nothing was written
    for command, accuracy in zip(commands, (80.0, 60.0)):
        folder = Path(understood(command)[0].output_dir)
        folder.mkdir(parents=True)
        write_json({"epochs": 50, "accuracy": accuracy, "per_class": {"x": {"accuracy": 1.0}}}, folder / "result.json")
    assert call(*arguments)[0].stdout == "base 80.0, new 60.0, H 68.6\n"  # 2 * 80 * 60 / 140
    assert call(*arguments, LOADEP="15")[0].stdout == ""  # of another epoch than the result of the base classes


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (ROOT / ".venv").is_dir(), reason="the script would install its environment first")
def test_quickstart_from_an_empty_folder(tmp_path, pictures_root):
    """The README's first command, with the method that does not train; then again, without Python."""
    places = {"DATA": pictures_root, "OUTPUT": str(tmp_path), "METHODS": "ZeroshotCLIP"}
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((done.stdout + done.stderr).splitlines()) <= 40
    assert (tmp_path / "quickstart" / "ZeroshotCLIP" / "result.json").is_file()
    assert "ZeroshotCLIP" in (tmp_path / "quickstart" / "table.md").read_text()
    assert len(list((tmp_path / "quickstart" / "pictures").iterdir())) == 12
    assert (tmp_path / "quickstart" / "pictures.png").is_file()
    start = time.monotonic()
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    assert again.stdout
    assert again.stdout in done.stdout
    assert time.monotonic() - start < 5
