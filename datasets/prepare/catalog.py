"""Catalog of the standard data sets: names, folders, sizes, licenses, counts and checksums. No code depends on them.

Readers take their folders from here; tools that fetch or check data take everything else. Paths use "/" and are below
the data set's folder, which is below the data root.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CATALOG", "DatasetInfo", "prepare_command", "read_data"]


@dataclass(frozen=True)
class DatasetInfo:
    """One data set.

    Attributes:
        name: class name of the reader, DATASET.NAME.
        config: file name in configs/datasets, without .yaml.
        folder: folder below the data root.
        images: folder of the images that split files are relative to; "" is the data set's folder itself.
        classes: number of classes.
        train, val, test: numbers of images; None where the data set has no such split.
        template: prompt of zero-shot CLIP.
        title, home: what people call it and where it comes from.
        size: of the download, roughly. licence: terms that the source states.
        split_file: name of the split file; "" where the data set needs none.
        layout: files and folders that the reader needs, besides images and split file.
        annotations: files that a split is made from on request.
        manual: True if nobody may or can fetch the images automatically.
        sha256: file -> sha256. git_blob: file -> git's SHA-1 of the blob (sha1 of "blob <bytes>\\0" and the content).
        drive: file -> id on Google Drive, where the authors of CoOp publish it.
        names_sha256: of the class names in label order, joined by newlines.
        picks_sha256: of the 16-shot picks of seed 1: training paths, a line "--", validation paths, newline-joined.
    """

    name: str
    config: str
    folder: str
    images: str
    classes: int
    train: int | None
    val: int | None
    test: int
    title: str
    home: str
    size: str
    licence: str
    template: str = "a photo of a {}."
    split_file: str = ""
    layout: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    manual: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict)
    git_blob: Mapping[str, str] = field(default_factory=dict)
    drive: Mapping[str, str] = field(default_factory=dict)
    names_sha256: str = ""
    picks_sha256: str = ""

    @property
    def made_split(self) -> str:
        """Name of a split file made on request: never the official name, so that nobody takes it for that."""
        return f"split_made_{self.name}.json" if self.split_file else ""


def prepare_command(name: str, root: str = "") -> str:
    """The command that fetches a data set to the data root; "" stands for DATA."""
    return f"python -m datasets.prepare {name} --root {shlex.quote(root) if root else 'DATA'}"


def read_data(file: str) -> dict[str, Any]:
    """A YAML file beside this module, with tuples in the place of lists."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(entry) for key, entry in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return frozen(yaml.load((Path(__file__).parent / file).read_text(encoding="utf-8"), loader))


CATALOG: Mapping[str, DatasetInfo] = {name: DatasetInfo(name, **v) for name, v in read_data("catalog.yaml").items()}
