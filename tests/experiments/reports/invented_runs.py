"""Invented run folders: their figures are not measurements, and only tests use them."""

import json
from pathlib import Path

from experiments import Recipe
from experiments.recipe import Method

MARKS = {
    "split": {"train_x": "1", "test": "t"},
    "test_split": "t",
    "classnames": "c",
    "templates": "a photo of a {}.",
    "transforms": {"train": "Crop", "test": "Resize"},
    "backbone": "b",
    "shots": 1,
    "subsample": "all",
}


def make_method(name, shots=(1,), seeds=(1, 2, 3), trainer=None, **more):
    values = {"trainer": trainer or name, "config": "emoji", "published": name, **more}
    return Method(name=name, shots=shots, seeds=seeds, **values)


def make_recipe(task="few_shot", methods=(), **more):
    return Recipe(name="invented", path=Path("invented.yaml"), task=task, title="Invented", methods=methods, **more)


def write_run(run, accuracy, fingerprint=None, **changed):
    """The files of a finished run."""
    folder = run.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    marks = {
        **MARKS,
        "seed": run.seed,
        "shots": run.shots,
        "classnames": f"{run.dataset}-{run.part}",
        **(fingerprint or {}),
    }
    result = {
        "method": run.trainer,
        "dataset": run.dataset,
        "seed": run.seed,
        "shots": run.shots,
        "mode": "train",
        "epochs": 0 if run.trainer == "ZeroshotCLIP" else 5,
        "selection": "last",
        "accuracy": accuracy,
        "train_seconds": 10.0 * run.seed,
        "elapsed_seconds": 12.0,
        "images_per_second": 100.0,
        "trainable_parameters": 0 if run.trainer == "ZeroshotCLIP" else 2048,
        "device": "cpu",
        "fingerprint": marks,
        "protocol_hash": "p",
        **changed,
    }
    (folder / "result.json").write_text(json.dumps(result))
    for name in ("config.yaml", "log.txt", "DONE"):
        (folder / name).touch()
