"""Recognize a run that is done from its files alone, without importing torch."""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from dassl.config import ConfigError
from dassl.config.files import config_files
from dassl.config.imports import imports_of
from dassl.utils import read_json

from .status import DONE, ENVIRONMENT, read_result, resume_file, run_state

CONFIGS = Path(__file__).parents[2] / "configs"


def done_already(args: argparse.Namespace, command: Sequence[str], code: Sequence[str | os.PathLike[str]]) -> bool:
    """True if exactly this command has finished in this folder and nothing that decides about its config is newer.

    False says nothing: the whole check, which compares the configs, then decides.

    Args:
        command: the arguments of train.py, as env.json keeps them.
        code: folders of modules that declare options, besides this package.

    Raises:
        ValueError: result.json is damaged.
    """
    folder = Path(args.output_dir or "output")
    if args.eval_only or args.no_train or args.print_config or args.imports or "WORLD_SIZE" in os.environ:
        return False
    if "OUTPUT_DIR" in args.opts or run_state(folder) != "done" or resume_file(folder).is_file():
        return False
    try:
        started = read_json(folder / ENVIRONMENT)
        finished = datetime.datetime.fromisoformat((folder / DONE).read_text(encoding="utf-8").strip()).timestamp()
        same = (started["command"], started["directory"], started["mode"]) == (list(command), os.getcwd(), "train")
        if not same or any(path.stat().st_mtime >= finished for path in _deciding(args, code)):
            return False
    except (OSError, ValueError, KeyError, TypeError, ConfigError, yaml.YAMLError):
        return False
    read_result(folder)
    return True


def _deciding(args: argparse.Namespace, code: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files that decide about the config; ValueError if they name modules to import."""
    for place in (Path(__file__).parents[1], *map(Path, code)):
        yield from place.rglob("*.py")
    files = [args.config_file]
    name = args.dataset_config_file
    if name and Path(name).name == name and not name.endswith(".yaml"):  # without a file it comes from the code
        own = CONFIGS / "datasets" / f"{name}.yaml"
        files.append(str(own) if own.is_file() else None)
        yield from CONFIGS.glob("datasets.yaml")
    else:
        files.append(name)
    for file in filter(None, files):
        if imports_of(file):
            raise ValueError(f"{file} imports modules")
        yield from config_files(file)
