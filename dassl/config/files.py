"""Config files: yaml that names its bases (`_BASE_`), several configs in one file, and configs that need no file.

`FOLDER/NAME.yaml` stands for, in this order:

1. the file;
2. the section NAME of `FOLDER.yaml`, which holds several small configs;
3. what a function in `GENERATED` makes for the folder, such as the configs of registered data sets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dassl.utils.yaml_files import load_yaml

from .errors import ConfigError, shown

BASE = "_BASE_"


class Generator(NamedTuple):
    """Configs that a folder has without a file: their names, and the content of one (None if there is none)."""

    names: Callable[[Path], list[str]]
    content: Callable[[Path, str], dict[str, Any] | None]


GENERATED: list[Generator] = []


class Pair(NamedTuple):
    """A dotted key, its value as yaml reads it, and the file that sets it."""

    key: str
    value: Any
    file: Path


def config_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Keys of a config and of its bases, each once; a config overrides its bases, a later base an earlier one.

    Raises:
        FileNotFoundError: no such config or base.
        ConfigError: a file is not a YAML mapping, or bases go in a circle.
    """
    return list(_read(Path(path).expanduser(), ()).values())


def config_files(path: str | os.PathLike[str]) -> set[Path]:
    """Files on disk that a config is read from: its own, or that of its section, and those of its bases.

    Raises:
        FileNotFoundError: no such config or base.
    """
    files: set[Path] = set()
    seen: set[str] = set()
    waiting = [Path(path).expanduser()]
    while waiting:
        config = waiting.pop()
        if os.path.abspath(config) in seen:
            continue
        seen.add(os.path.abspath(config))
        content, file = _find(config, ())
        if file.is_file():
            files.add(file)
        bases = content.get(BASE, [])
        waiting += [file.parent / Path(base).expanduser() for base in ([bases] if isinstance(bases, str) else bases)]
    return files


def config_exists(path: str | os.PathLike[str]) -> bool:
    """True if `path` is a file, a section or a generated config."""
    path = Path(path).expanduser()
    return path.is_file() or path.stem in config_names(path.parent)


def config_names(folder: str | os.PathLike[str]) -> list[str]:
    """Names of all configs of a folder, sorted."""
    folder = Path(folder).expanduser()
    names = {path.stem for path in folder.glob("*.yaml")}
    family = _family(folder)
    if family.is_file():
        names |= set(_load(family))
    return sorted(names.union(*(make.names(folder) for make in GENERATED)))


def _family(folder: Path) -> Path:
    """The file with the sections of a folder."""
    return folder.parent / f"{folder.name}.yaml"


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Pair]:
    place = Path(os.path.abspath(path))
    if place in chain:
        raise ConfigError(
            f'"{chain[0]}"', [f"{BASE} goes in a circle: {' -> '.join(str(one) for one in (*chain, place))}"]
        )
    content, file = _find(path, chain)
    bases = content.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(f'"{path}"', [f"{BASE} is {bases!r}, expected the path of a yaml file or a list of paths"])
    pairs: dict[str, Pair] = {}
    for base in bases:
        pairs |= _read(file.parent / Path(base).expanduser(), (*chain, place))
    return pairs | {key: Pair(key, value, path) for key, value in leaves(content)}


def _find(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], Path]:
    """Content of a config, and the file it stands in, to which its bases are relative."""
    if path.is_file():
        content = _load(path)
        if content and all(key != str(key).upper() and isinstance(value, dict) for key, value in content.items()):
            known = ", ".join(map(str, content))
            raise ConfigError(
                f'"{path}"', [f"the file holds the configs {known}: name one as {path.with_suffix('')}/NAME.yaml"]
            )
        return content, path
    family = _family(path.parent)
    if family.is_file():
        section = _load(family).get(path.stem)
        if isinstance(section, dict):
            return section, family
    for make in GENERATED:
        made = make.content(path.parent, path.stem) if path.suffix == ".yaml" else None
        if made is not None:
            return made, path
    named = f', the {BASE} of "{chain[-1]}"' if chain else ""
    known = " ".join(config_names(path.parent))
    raise FileNotFoundError(f'no config file at "{path}"{named}' + (f"; the folder has: {known}" if known else ""))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f'"{path}"', [f"not readable as yaml: {err}"]) from err
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f'"{path}"', [f"expected keys and values, got {shown(content)}"])
    return content or {}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a node; an empty node counts as nothing."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs.extend(leaves(value, f"{prefix}{key}."))
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
