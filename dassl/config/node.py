"""A yacs config node that shows every error of a file or a command line at once."""

from __future__ import annotations

import os
from ast import literal_eval
from collections.abc import Iterable, Sequence
from typing import Any

import yacs.config
import yaml

from dassl.utils.tools import get_most_similar_str_to_a_from_b

__all__ = ["CfgNode", "ConfigError"]


class ConfigError(ValueError, KeyError):
    """One or more errors in a config. A KeyError too, because yacs reports an unknown key as one."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  {err}" for err in self.problems)]))

    def __str__(self) -> str:
        return str(self.args[0])


class CfgNode(yacs.config.CfgNode):
    """yacs.config.CfgNode with stricter and friendlier merging.

    As in yacs: values given as strings are read as Python literals where possible ("1e-5" is a number, "(224, 224)" a
    tuple), lists and tuples convert into each other, and a key that is not in the tree is an error.
    Other than in yacs:
    - a merge either applies whole or, with a ConfigError that lists all errors, not at all;
    - an integer is accepted, and converted, where the default is a float; a text that reads as a number is accepted
      where the default is a text (an output folder called 2024);
    - None is accepted only where the default is None;
    - a yaml that gives one key twice is an error.
    """

    def merge_from_file(self, cfg_filename: str | os.PathLike[str]) -> None:
        """Merge a yaml file.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: it is no yaml, or holds unknown keys or values of a wrong type.
        """
        if not os.path.isfile(cfg_filename):
            raise FileNotFoundError(f'no config file at "{cfg_filename}"')
        source = f'"{cfg_filename}"'
        with open(cfg_filename, encoding="utf-8") as file:
            try:
                content = yaml.load(file, Loader=_UniqueKeyLoader)
            except (yaml.YAMLError, UnicodeDecodeError) as err:
                raise ConfigError(source, [f"not readable as yaml: {err}"]) from err
        if content is None:
            return
        if not isinstance(content, dict):
            raise ConfigError(source, [f"expected keys and values, got {content!r}"])
        self._merge(_leaves(content), source)

    def merge_from_other_cfg(self, cfg_other: dict[str, Any]) -> None:
        """Merge another node; ConfigError for unknown keys or values of a wrong type."""
        self._merge(_leaves(cfg_other), "the config to merge")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge [key, value, key, value, ...], such as the end of a command line.

        Raises:
            ConfigError: odd length, unknown keys, or values of a wrong type.
        """
        source = "the options KEY VALUE"
        if len(cfg_list) % 2:
            raise ConfigError(source, [f"expected pairs, got an odd number of items: {' '.join(map(str, cfg_list))}"])
        self._merge(zip(cfg_list[0::2], cfg_list[1::2]), source)

    def _merge(self, pairs: Iterable[tuple[str, Any]], source: str) -> None:
        problems: list[str] = []
        changes: list[tuple[CfgNode, str, Any]] = []
        for full_key, raw in pairs:
            node, name = self._find(full_key)
            if node is None:
                problems.append(f"unknown key {full_key}{self._suggestion(full_key)}")
            elif name not in node:
                changes.append((node, name, _decode(raw)))
            else:
                try:
                    changes.append((node, name, _convert(_decode(raw), raw, node[name])))
                except ValueError as err:
                    problems.append(f"{full_key} {err}")
        if problems:
            raise ConfigError(source, problems)
        for node, name, value in changes:
            *path, last = name.split(".")
            for part in path:
                node = node.setdefault(part, CfgNode(new_allowed=True))
            node[last] = value

    def _find(self, full_key: str) -> tuple[CfgNode | None, str]:
        """The deepest existing node on the way to a dotted key, and the rest of the key; no node if it is unknown."""
        node: Any = self
        *path, name = str(full_key).split(".")
        for index, part in enumerate(path):
            if part not in node and node.is_new_allowed():
                return node, ".".join([*path[index:], name])
            if not isinstance(node.get(part), yacs.config.CfgNode):
                return None, name
            node = node[part]
        return (node, name) if name in node or node.is_new_allowed() else (None, name)

    def _suggestion(self, full_key: str) -> str:
        known = [key for key, _ in _leaves(self)]
        last = str(full_key).split(".")[-1]
        similar = [key for key in known if key.split(".")[-1] == last]
        closest = get_most_similar_str_to_a_from_b(str(full_key), similar or known)
        return f" (do you mean {closest}?)" if closest else ""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that gives one key twice; plain yaml silently takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a node; an empty node counts as nothing."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs.extend(_leaves(value, f"{prefix}{key}."))
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _decode(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    try:
        return literal_eval(raw)
    except (ValueError, SyntaxError):
        return raw


def _convert(value: Any, raw: Any, default: Any) -> Any:
    """`value` in the type of `default`; ValueError with what was found and what is allowed."""
    wanted = type(default)
    if isinstance(default, yacs.config.CfgNode):
        raise ValueError(f"is a section (with {', '.join(default) or 'no keys'}), got the value {raw!r}")
    if default is None or type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is str and isinstance(raw, str):
        return raw
    if wanted in (list, tuple) and type(value) in (list, tuple):
        return wanted(value)
    raise ValueError(f"is {raw!r} ({type(value).__name__}), expected {wanted.__name__} such as {default!r}")
