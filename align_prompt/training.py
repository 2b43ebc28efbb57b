"""`align_prompt.fit`: the command line of train.py that stands for its arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - registers the data sets
from align_prompt.registries import CONFIGS, config_names, names_of_methods
from dassl.engine.command import known_config, run
from dassl.utils import get_most_similar_str_to_a_from_b


def train(
    method: str,
    images: str | os.PathLike[str] | None,
    dataset: str | None,
    shots: int,
    seed: int,
    backbone: str,
    output: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    device: str | None,
) -> str:
    """Train as `align_prompt.fit` says; returns the folder of the run."""
    known = names_of_methods()
    if method not in known:
        similar = get_most_similar_str_to_a_from_b(method, known)
        raise ValueError(f"method is {method!r} (do you mean {similar}?), expected one of {', '.join(known)}")
    if (images is None) == (dataset is None):
        raise ValueError("fit needs either images, your own pictures, or dataset, the name of a known data set")
    name = "folder" if dataset is None else dataset
    if name not in config_names("datasets"):
        raise ValueError(f"dataset is {name!r}, expected one of {', '.join(config_names('datasets'))}")
    if shots < 0:
        raise ValueError(f"shots is {shots}, expected a number of pictures per class, or 0 for all")
    config = config_for(method, backbone)
    data = name if images is None else Path(images).resolve().stem
    if output is None:
        kind = "defaults" if config is None else config.stem
        output = Path("output/fit", data, f"shots_{shots or 'all'}", method, kind, f"seed{seed}")
    argv = ["--trainer", method, "--backbone", backbone, "--seed", str(seed), "--output-dir", os.fspath(output)]
    argv += ["--dataset-config-file", str(CONFIGS / "datasets" / f"{name}.yaml")]
    argv += ["--root", "data" if images is None else os.fspath(images)]
    if config is not None:
        argv += ["--config-file", str(config)]
    pairs = {"DATASET.NUM_SHOTS": shots or -1, "USE_CUDA": device != "cpu", **options}
    run([*argv, *(str(item) for pair in pairs.items() for item in pair)])
    return str(pairs.get("OUTPUT_DIR", output))


def config_for(method: str, backbone: str) -> Path | None:
    """The config of a method for a backbone, that of few shots first; else the method's first one, else None."""
    found = [CONFIGS / "trainers" / method / f"{name}.yaml" for name in config_names(f"trainers/{method}")]
    files = sorted(found, key=lambda file: (_rank(file), len(file.stem)))
    for file in files:
        cfg = known_config()
        cfg.merge_from_file(file)
        if backbone == cfg.MODEL.BACKBONE.NAME:
            return file
    return files[0] if files else None


def _rank(file: Path) -> bool:
    return "few_shot" not in file.stem
