"""One declaration per config key: default, range, choices and meaning, from which checks and the docs' tables come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import shown
from .node import CfgNode, accept_lists

__all__ = ["SCHEMA", "Option", "declare", "method_options"]


@dataclass(frozen=True)
class Option:
    """Default and meaning of a key, and the values it may take besides its default.

    Attributes:
        default: its type is the key's type. None: the key may also stay None, see `kind`.
        help: one line for the docs' tables.
        choices: all values there are; of a list or tuple, all values of its items.
        low, high: inclusive bounds of a number, or of each number of a list. above, below: exclusive ones.
        length: how many items a list or tuple has, or several such numbers.
        kind: type of the value where the default is None, of the items where it is a list or tuple.
        texts: one text or a list of texts, whichever the default is.
        rule: any other condition, and the same in words ("expected ...").
    """

    default: Any
    help: str = ""
    choices: Iterable[Any] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    length: int | tuple[int, ...] | None = None
    kind: type | None = None
    rule: tuple[Callable[[Any], Any], str] | None = None
    texts: bool = False

    @property
    def many(self) -> bool:
        return isinstance(self.default, (list, tuple))

    @property
    def item(self) -> type | None:
        """Type of the value, or of its items; None if any type is taken."""
        return self.kind or (None if self.many or self.default is None else type(self.default))

    def problem(self, value: Any) -> str:
        """Description of the allowed values if `value` is not one; "" if it is."""
        if type(value) is type(self.default) and value == self.default:
            return ""
        try:
            good = self._items_fit(value) and (self.rule is None or bool(self.rule[0](value)))
        except (TypeError, ValueError, IndexError, AttributeError):
            good = False
        return "" if good else f"is {shown(value)}, expected {self.expected()}"

    def _items_fit(self, value: Any) -> bool:
        if self.texts:
            return isinstance(value, str) or (
                isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
            )
        if not self.many:
            return self._fits(value)
        if not isinstance(value, (list, tuple)):
            return False
        lengths = (self.length,) if isinstance(self.length, int) else self.length
        return (lengths is None or len(value) in lengths) and all(map(self._fits, value))

    def _fits(self, value: Any) -> bool:
        if self.choices is not None:
            return value in tuple(self.choices)
        if self.item in (int, float):
            if isinstance(value, bool) or not isinstance(value, (int, self.item)):
                return False
            return (
                math.isfinite(value)
                and (self.low is None or value >= self.low)
                and (self.high is None or value <= self.high)
                and (self.above is None or value > self.above)
                and (self.below is None or value < self.below)
            )
        return self.item is None or isinstance(value, self.item)

    def expected(self) -> str:
        """The allowed values in words."""
        if self.rule is not None:
            words = self.rule[1]
        elif self.choices is not None:
            known = ", ".join(str(choice) or repr("") for choice in self.choices)
            words = f"{'some' if self.many else 'one'} of {known}"
        elif self.texts:
            words = "a text or a list of texts"
        elif self.item is bool:
            words = "True or False"
        elif self.item in (int, float):
            words = self._numbers()
        else:
            words = "texts" if self.many else "a text"
        return f"{words}, or None" if self.default is None else words

    def _numbers(self) -> str:
        bounds = [f"above {self.above}" if self.above is not None else None if self.low is None else f"from {self.low}"]
        bounds += [
            f"below {self.below}" if self.below is not None else None if self.high is None else f"to {self.high}"
        ]
        given = [bound for bound in bounds if bound]
        if not self.many and given == [f"from {self.low}"]:
            return f"{self.low} or more"
        if given == [f"to {self.high}"]:
            given = [f"at most {self.high}"]
        if not self.many:
            return " ".join(["a whole number" if self.item is int else "a number", *given])
        lengths = (self.length,) if isinstance(self.length, int) else self.length or ()
        words = " or ".join({0: "no", 2: "two", 3: "three"}.get(one, str(one)) for one in lengths)
        return " ".join([*([words] if words else []), "whole numbers" if self.item is int else "numbers", *given])


SCHEMA: dict[str, Option] = {}
"""Every declared option by its dotted key, such as TRAINER.COOP.N_CTX; filled by `declare`."""


def declare(prefix: str, options: Mapping[str, Any]) -> CfgNode:
    """A config section with the defaults of `options`, which may be nested; each Option is noted under its full key.

    Args:
        prefix: the section's dotted key with a dot at its end, such as "TRAINER.COOP."; "" for the root.
        options: by key, Options, plain defaults that any value of their type may replace, or further sections.
    """
    node = CfgNode()
    for key, option in options.items():
        if isinstance(option, Mapping):
            node[key] = declare(f"{prefix}{key}.", option)
        elif isinstance(option, Option):
            SCHEMA[f"{prefix}{key}"] = option
            if option.texts:
                accept_lists(f"{prefix}{key}")
            node[key] = list(option.default) if isinstance(option.default, list) else option.default
        else:
            node[key] = option
    return node


def method_options(section: str, options: Mapping[str, Any]) -> CfgNode:
    """Section of a method below TRAINER, as its `defaults()` returns it."""
    return CfgNode({section: declare(f"TRAINER.{section}.", options)})
