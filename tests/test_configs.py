"""Every config in configs/ is one that train.py takes, and resolves to the values it had before it was made small."""

import json
import re
from pathlib import Path

import pytest
import yaml

import train
from dassl.config.files import config_names, leaves
from dassl.engine import TRAINER_REGISTRY
from tests.golden_configs import FILE, digest, names, resolved

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
NAMES = names()
METHODS = [name for name in NAMES if name.startswith("trainers/")]
DATASETS = [name for name in NAMES if name.startswith("datasets/")]


def config(*flags: str):
    return train.build_config(train.build_parser().parse_args(["--root", "data", *flags]))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_its_config(name):
    method = name.split("/")[1]
    cfg = config("--trainer", method, "--config-file", str(CONFIGS / f"{name}.yaml"), "DATASET.NUM_SHOTS", "16")
    trainer = TRAINER_REGISTRY.get(method)
    trainer.check_cfg(object.__new__(trainer), cfg)


@pytest.mark.parametrize("file", sorted((CONFIGS / "trainers").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_config_says_what_it_is_and_how_it_is_run(file):
    comment: list[str] = []
    for line in file.read_text().splitlines():
        if line.startswith("#"):
            comment.append(line)
        elif re.match(r"\w", line):
            scripts = [match for text in comment for match in re.findall(r"^# Run: .*?bash (scripts/\S+)", text)]
            assert len(comment) >= 2, line
            assert len(scripts) == 1, line
            assert (CONFIGS.parent / scripts[0]).is_file()
        else:
            comment = []


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_config_names_a_registered_data_set(name):
    from dassl.data.datasets import DATASET_REGISTRY

    found = config("--dataset-config-file", str(CONFIGS / f"{name}.yaml")).DATASET.NAME
    assert found in DATASET_REGISTRY.registered_names()
    assert found == config("--dataset-config-file", name.split("/")[1]).DATASET.NAME
    assert found == config("--dataset-config-file", f"configs/datasets/{found}.yaml").DATASET.NAME


@pytest.mark.parametrize("name", sorted(json.loads(FILE.read_text())))
def test_a_config_resolves_to_the_values_it_had(name):
    values = resolved(name)
    assert digest(values) == json.loads(FILE.read_text())[name], json.dumps(values, indent=2)


def test_configs_hold_what_differs():
    pairs = sum(len(leaves(yaml.safe_load(file.read_text()))) for file in FILES)
    assert len(FILES) <= 50
    assert pairs <= 21 * len(FILES)
    assert "emoji" in config_names(CONFIGS / "trainers" / "CoOp")
