"""Every config file in configs/ is one that train.py takes."""

import re
from pathlib import Path

import pytest

import train
from dassl.engine import TRAINER_REGISTRY

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = sorted((CONFIGS / "trainers").glob("*/*.yaml"))
DATASETS = sorted((CONFIGS / "datasets").glob("*.yaml"))


def names(files):
    return [str(file.relative_to(CONFIGS)) for file in files]


def config(*flags: str):
    return train.build_config(train.build_parser().parse_args(["--root", "data", *flags]))


@pytest.mark.parametrize("file", METHODS, ids=names(METHODS))
def test_a_method_takes_its_config(file):
    cfg = config("--trainer", file.parent.name, "--config-file", str(file), "DATASET.NUM_SHOTS", "16")
    trainer = TRAINER_REGISTRY.get(file.parent.name)
    trainer.check_cfg(object.__new__(trainer), cfg)


@pytest.mark.parametrize("file", METHODS, ids=names(METHODS))
def test_a_config_says_what_it_is_and_how_it_is_run(file):
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    scripts = [match for line in head for match in re.findall(r"^# Run: .*?bash (scripts/\S+)", line)]
    assert len(head) >= 2
    assert len(scripts) == 1
    assert (CONFIGS.parent / scripts[0]).is_file()


@pytest.mark.parametrize("file", DATASETS, ids=names(DATASETS))
def test_a_dataset_config_names_a_registered_data_set(file):
    import datasets  # noqa: F401  registers the readers
    from dassl.data.datasets import DATASET_REGISTRY

    assert config("--dataset-config-file", str(file)).DATASET.NAME in DATASET_REGISTRY.registered_names()
