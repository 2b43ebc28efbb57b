"""metrics.jsonl: one JSON object per line, for programs; log.txt is for people."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from dassl.utils import write_text

FILE_NAME = "metrics.jsonl"


EVENTS = "tensorboard"


def event_sizes(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of each file of OUTPUT_DIR/tensorboard, by name."""
    return {path.name: path.stat().st_size for path in (Path(directory) / EVENTS).glob("events.out.tfevents.*")}


def rewind_events(directory: str | os.PathLike[str], sizes: dict[str, int]) -> None:
    """Cut the event files back to the sizes they had, and remove later ones, so that no point is there twice."""
    for path in (Path(directory) / EVENTS).glob("events.out.tfevents.*"):
        if path.name not in sizes:
            path.unlink()
        elif sizes[path.name] < path.stat().st_size:
            os.truncate(path, sizes[path.name])


class MetricsLog:
    """Appends records to OUTPUT_DIR/metrics.jsonl, each as one whole line; nothing without an OUTPUT_DIR.

    Every record has "kind" (train: one printed step; epoch: means of an epoch; val or test: one evaluation) and
    "epoch", counted from 1. Numbers that are not finite become null, which JSON has a word for.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.path = Path(directory) / FILE_NAME
        self.kept = bool(os.fspath(directory))  # a model that only predicts has no folder

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; the folder is made if it is missing."""
        if not self.kept:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(record), allow_nan=False) + "\n")

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.kept and self.path.exists() else 0

    def rewind(self, epoch: int, size: int | None = None) -> None:
        """Drop what a run wrote before it was stopped and will write again, so that nothing is there twice.

        Args:
            epoch: records of later epochs (1-based) go, and lines torn by a crash.
            size: if known, everything after so many bytes goes too.
        """
        if not self.path.exists():
            return
        if size is not None and size < self.size():
            os.truncate(self.path, size)
        kept = [line for record, line in _lines(self.path) if record.get("epoch", 0) <= epoch]
        write_text("".join(line + "\n" for line in kept), self.path)


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records of a run, in order; a line torn by a crash is left out.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
    """
    return [record for record, _ in _lines(Path(directory) / FILE_NAME)]


def _lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(record, dict):
            found.append((record, line))
    return found


def plain(value: Any) -> Any:
    """`value` with tensors and numpy numbers as Python numbers and non-finite floats as None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
