"""The shell scripts and the recipes mean the same runs: same folders, same configs."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

import train
from dassl.engine.status import config_values
from experiments import expand, load_recipe

ROOT = Path(train.__file__).parent
STYLES = ["openmoji-black", "fluent-flat", "fluent-hc", "fluent-3d", "streamline"]
CASES = {
    "few_shot": ({"task": "few_shot", "datasets": ["emoji_food"]}, [("few_shot.sh", ["emoji_food", "4", "2"], {})]),
    "base2new": (
        {"task": "base2new", "datasets": ["emoji_groups"]},
        [("base2new_train.sh", ["emoji_groups", "2"], {}), ("base2new_test.sh", ["emoji_groups", "2"], {})],
    ),
    "cross_dataset": (
        {"task": "cross_dataset", "source": "emoji_groups", "targets": ["digits"]},
        [("cross_dataset_train.sh", ["emoji_groups", "2"], {}), ("cross_dataset_test.sh", ["digits", "2"], {})],
    ),
    "styles": (
        {"task": "domain_generalization", "source": "emoji_groups", "domain": "openmoji", "targets": STYLES},
        [
            ("cross_dataset_train.sh", ["emoji_groups", "2"], {"DOMAIN": "openmoji"}),
            ("domain_generalization.sh", ["all", "2"], {"SOURCE": "emoji_groups"}),
        ],
    ),
    "incremental": (
        {"task": "incremental", "datasets": ["emoji_groups"], "sets": 4},
        [("../incremental.sh", ["ALIGN", "emoji_groups", "4", "2", "4"], {})],
    ),
    "imagenet": (
        {"task": "domain_generalization", "source": "imagenet", "targets": ["imagenet_r"]},
        [("cross_dataset_train.sh", ["2"], {}), ("domain_generalization.sh", ["imagenet_r", "2"], {})],
    ),
}


def called(folder, script, arguments, environment):
    """Commands that a script of scripts/align gives to train.py, with a stand-in for Python."""
    shown, python = folder / "shown", folder / "python"
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" END >> {shown}\n')
    python.chmod(0o755)
    own = ("CFG", "METHOD", "SHOTS", "OUT", "SOURCE", "DOMAIN", "SUB", "LOADEP")
    variables = {name: value for name, value in os.environ.items() if name not in own}
    variables |= {"PYTHON": str(python), "OUTPUT": str(folder / "out"), "DATA": str(folder), "SHOTS": "4"}
    subprocess.run(
        ["bash", str(ROOT / "scripts" / "align" / script), *arguments], check=True, env={**variables, **environment}
    )
    commands = [text.splitlines() for text in shown.read_text().split("END\n")[:-1]]
    shown.unlink()
    return [command[command.index("--root") :] for command in commands]


@pytest.mark.parametrize("case", CASES)
def test_scripts_and_recipes_agree(case, tmp_path):
    entries, scripts = CASES[case]
    config = "vit_b16_cross_dataset" if case == "imagenet" else "emoji"
    content = {"config": config, "shots": 4, "seeds": 2, "methods": ["ALIGN"], **entries}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content))
    runs = expand(load_recipe(tmp_path / "table.yaml"), root=tmp_path, output=tmp_path / "out")
    commands = [command for script in scripts for command in called(tmp_path, *script)]
    assert len(commands) == len(runs)
    for run, command in zip(runs, commands):
        ours, theirs = (train.build_parser().parse_args(list(words)) for words in (run.argv, command))
        for name in ("root", "seed", "trainer", "output_dir", "eval_only", "model_dir", "load_epoch"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert config_values(train.build_config(ours)) == config_values(train.build_config(theirs))
