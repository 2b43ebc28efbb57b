"""Resolved config of every name in configs/: hashes that hold until a config is changed on purpose.

`python -m tests.golden_configs` compares and shows the values of what differs; `--write` takes over what there is now.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from dassl.config.files import config_names, leaves
from dassl.engine.command import build_config, build_parser, known_config

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).parent / "golden" / "configs.json"


def names() -> list[str]:
    """Every config below configs/, such as trainers/CoOp/emoji and datasets/digits, except bases."""
    methods = sorted({path.stem for path in (ROOT / "configs" / "trainers").iterdir()})
    folders = [f"trainers/{method}" for method in methods] + ["datasets"]
    return [f"{folder}/{name}" for folder in folders for name in config_names(ROOT / "configs" / folder)]


@lru_cache(maxsize=1)
def defaults() -> dict[str, Any]:
    return dict(leaves(known_config()))


def resolved(name: str) -> dict[str, Any]:
    """Keys of the resolved config that differ from the defaults, so that a new key with a default changes nothing."""
    kind, *rest = name.split("/")
    file = str(ROOT / "configs" / f"{name}.yaml")
    argv = ["--dataset-config-file", file, "--trainer", "ZeroshotCLIP"]
    if kind == "trainers":
        argv = ["--config-file", file, "--trainer", rest[0]]
    cfg = build_config(build_parser().parse_args(argv))
    if kind == "datasets":
        for key in ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD"):  # the method's business
            cfg.INPUT.pop(key)
    return {key: value for key, value in sorted(leaves(cfg)) if value != defaults()[key]}


def digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    import train  # noqa: F401  registers methods and data sets

    found = {name: digest(resolved(name)) for name in names()}
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(found, indent=0) + "\n")
        return 0
    known = json.loads(FILE.read_text())
    other = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    for name in other:
        print(name, json.dumps(resolved(name), indent=2) if name in found else "is missing")
    return len(other) > 0


if __name__ == "__main__":
    raise SystemExit(main())
