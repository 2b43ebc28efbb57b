"""The functions of the package. Each imports what it needs when it is called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align_prompt.model import Model


def load(
    path_or_name: str | os.PathLike[str],
    classnames: Sequence[str] | None = None,
    device: str | None = None,
    imports: Sequence[str] = (),
) -> Model:
    """A model that predicts.

    Nothing but the file or folder is needed: no data set, no training pictures, no config file.

    Args:
        path_or_name: the folder of a finished run, one of its checkpoints, a bundle (`export`), or the name or weights
            of a CLIP, which is used zero-shot.
        classnames: other classes than those of training, where the method allows it; needed for a zero-shot CLIP.
        device: "cpu" or "cuda"; None = a GPU if there is one.
        imports: modules or .py files that register your own method. They run as programs.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder without a run.
        ValueError: the run is not finished; a file that is damaged or of another version; classes that the method
            cannot change; an unknown name.
    """
    from align_prompt.model import Model
    from align_prompt.source import find_source

    return Model(find_source(path_or_name, imports), classnames, device)


def fit(
    method: str,
    images: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    shots: int = 16,
    seed: int = 1,
    backbone: str = "ViT-B/16",
    output: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Model:
    """Train a method on your own pictures and return the trained model.

    It is a run of train.py, with its engine, configs and files; called again it continues, or gives what is there.

    Args:
        method: see `methods()`.
        images: folder of class folders, or a table of pictures; see docs/datasets.md.
        dataset: instead of `images`, a data set; see `datasets()`. Its folder is options["DATASET.ROOT"], default data.
        shots: training pictures per class; 0 = all.
        seed: of the pictures that are drawn and of what starts at random.
        backbone: name of a CLIP (see `backbones()`) or path of its weights.
        output: folder of the run; None = output/fit/<data>/shots_<K>/<method>/<backbone>/seed<N>.
        options: further config keys and their values, such as {"OPTIM.MAX_EPOCH": 10}.
        device: "cpu" or "cuda"; None = a GPU if there is one.

    Returns:
        The model, with `model.folder` and `model.result`, the content of result.json.

    Raises:
        ValueError: an unknown name, an option that is not usable, or data that cannot be used.
        OSError: pictures or weights are missing.
    """
    from align_prompt.training import train

    folder = train(method, images, dataset, shots, seed, backbone, output, options or {}, device)
    return load(folder, device=device)


def methods() -> list[str]:
    """Names of the methods."""
    from align_prompt.registries import names_of_methods

    return names_of_methods()


def datasets() -> list[str]:
    """Names of the data sets: files of configs/datasets without .yaml."""
    from align_prompt.registries import config_names

    return config_names("datasets")


def backbones() -> list[str]:
    """Names of the CLIPs that are known by name; paths of weights work in their place."""
    from clip import available_models

    return available_models()
