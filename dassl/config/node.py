"""A yacs config node that shows every error of a file or a command line at once."""

from __future__ import annotations

import os
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yacs.config
import yaml

from dassl.utils.tools import get_most_similar_str_to_a_from_b

from .errors import ConfigError, shown
from .files import config_pairs, leaves

__all__ = ["CfgNode", "ConfigError", "accept_lists"]

_TEXT_OR_LIST: set[str] = set()


def accept_lists(*keys: str) -> None:
    """Let the options with these full names, such as TRAINER.ALIGN.CTX_INIT, hold one text or a list of texts."""
    _TEXT_OR_LIST.update(keys)


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

    def dump(self, stream: Any = None, **options: Any) -> Any:
        """Like yacs, by libyaml where PyYAML has it, in a quarter of the time: a run does it after every epoch."""

        def plain(value: Any) -> Any:
            return {key: plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value

        return yaml.dump(plain(self), stream, getattr(yaml, "CSafeDumper", yaml.SafeDumper), **options)

    def merge_from_file(self, cfg_filename: str | os.PathLike[str]) -> None:
        """Merge a yaml file and its bases, see :mod:`dassl.config.files`.

        Raises:
            FileNotFoundError: there is no such file or base.
            ConfigError: it is not valid YAML, or holds unknown keys or values of a wrong type.
        """
        found = config_pairs(cfg_filename)
        own = Path(cfg_filename).expanduser()
        origin = {pair.key: f' (in "{pair.file}")' for pair in found if pair.file != own}
        self._merge([pair[:2] for pair in found], f'"{cfg_filename}"', origin)

    def merge_from_other_cfg(self, cfg_other: dict[str, Any]) -> None:
        """Merge another node; ConfigError for unknown keys or values of a wrong type."""
        self._merge(leaves(cfg_other), "the config to merge")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge [key, value, key, value, ...], such as the end of a command line.

        Raises:
            ConfigError: odd length, unknown keys, or values of a wrong type.
        """
        source = "the options KEY VALUE"
        if len(cfg_list) % 2:
            raise ConfigError(source, [f"expected pairs, got an odd number of items: {' '.join(map(str, cfg_list))}"])
        self._merge(zip(cfg_list[0::2], cfg_list[1::2]), source)

    def _merge(self, pairs: Iterable[tuple[str, Any]], source: str, origin: Mapping[str, str] | None = None) -> None:
        problems: list[str] = []
        changes: list[tuple[CfgNode, str, Any]] = []
        for full_key, raw in pairs:
            place = (origin or {}).get(full_key, "")
            node, name = self._find(full_key)
            if node is None:
                problems.append(f"unknown key {full_key}{self._suggestion(full_key)}{place}")
            elif name not in node:
                changes.append((node, name, _decode(raw)))
            else:
                try:
                    convert = _convert_texts if full_key in _TEXT_OR_LIST else _convert
                    changes.append((node, name, convert(_decode(raw), raw, node[name])))
                except ValueError as err:
                    problems.append(f"{full_key} {err}{place}")
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
        known = [key for key, _ in leaves(self)]
        last = str(full_key).split(".")[-1]
        similar = [key for key in known if key.split(".")[-1] == last]
        closest = get_most_similar_str_to_a_from_b(str(full_key), similar or known)
        return f" (do you mean {closest}?)" if closest else ""


def _decode(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    try:
        return literal_eval(raw)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two of nesting without end
        return raw


def _convert_texts(value: Any, raw: Any, _default: Any) -> Any:
    """`value` as a list if it is one, otherwise the text as it was given."""
    if isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
        return list(value)
    if isinstance(raw, str):
        return raw
    raise ValueError(f"is {shown(raw)} ({type(value).__name__}), expected a text or a list of texts")


def _convert(value: Any, raw: Any, default: Any) -> Any:
    """`value` in the type of `default`; ValueError with what was found and what is allowed."""
    wanted = type(default)
    if isinstance(default, yacs.config.CfgNode):
        raise ValueError(f"is a section (with {', '.join(default) or 'no keys'}), got the value {shown(raw)}")
    if default is None or type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is str and isinstance(raw, str):
        return raw
    if wanted in (list, tuple) and type(value) in (list, tuple):
        return wanted(value)
    raise ValueError(f"is {shown(raw)} ({type(value).__name__}), expected {wanted.__name__} such as {default!r}")
