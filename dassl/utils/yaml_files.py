"""Read yaml that others wrote: no key twice, and no nesting and no references that grow beyond any use."""

from __future__ import annotations

from typing import Any

import yaml

DEPTH, NODES = 50, 100_000  # of a file that is read


def load_yaml(text: str, unique: bool = True) -> Any:
    """Content of a yaml text; `unique`: a mapping that gives one key twice, of which yaml takes the last, is an error.

    Raises:
        yaml.YAMLError: it is no yaml, is nested more than 50 levels deep, or stands for more than
            100,000 entries (by references to references).
    """
    try:
        loader = (_Loader if unique else yaml.SafeLoader)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {DEPTH} levels deep") from None


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that gives one key twice; plain yaml silently takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                twice = key in seen
            except TypeError:
                continue  # no key at all, which the loader reports
            if twice:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Entries below a node, references counted as often as they are used."""
    if depth > DEPTH:
        raise yaml.YAMLError(f"it is nested more than {DEPTH} levels deep")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # until its size is known, so that a reference to it from within is seen
        children = [child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_size(child, known, depth + 1) for child in children)
    if known[id(node)] == 0:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1} refers to itself")
    if known[id(node)] > NODES:
        raise yaml.YAMLError(f"it stands for more than {NODES} entries, by references to references")
    return known[id(node)]
