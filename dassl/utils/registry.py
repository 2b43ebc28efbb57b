"""Names that can be chosen in a config, and what they stand for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Registry", "imported_code"]

logger = logging.getLogger(__name__)


class Registry:
    """A table from names to classes or functions.

    `@REGISTRY.register()` above a class or `REGISTRY.register(obj)` enters it under its `__name__`, or under `name`.

    Attributes:
        replaced: built-in objects whose names :func:`imported_code` has taken.
    """

    _all: list[Registry] = []
    _importing = False

    def __init__(self, name: str):
        self._name = name
        self._obj_map: dict[str, Any] = {}
        self._pending: list[Callable[[], Any]] = []
        self._imported: set[str] = set()
        self.replaced: dict[str, Any] = {}
        self._all.append(self)

    def on_first_use(self, load: Callable[[], Any]) -> None:
        """Call `load`, which imports modules that register, before the first look-up."""
        self._pending.append(load)

    def _load(self) -> None:
        while self._pending:
            self._pending.pop(0)()

    def _do_register(self, name: str, obj: Any, force: bool) -> None:
        taken = name in self._obj_map and not force
        if taken and self._importing and name not in self._imported:
            self.replaced[name] = self._obj_map[name]
            logger.warning('"%s" of %s replaces the built-in one of that name', name, obj.__module__)
        elif taken:
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._obj_map[name] = obj
        if self._importing:
            self._imported.add(name)

    def register(self, obj: Any = None, force: bool = False, name: str | None = None) -> Callable[[Any], Any] | Any:
        """Enter `obj`, or return a decorator that does.

        Raises:
            KeyError: the name is taken and `force` is False.
        """

        def enter(thing: Any) -> Any:
            self._do_register(thing.__name__ if name is None else name, thing, force)
            return thing

        return enter if obj is None else enter(obj)

    def get(self, name: str) -> Any:
        """Return the object of that name; KeyError if there is none."""
        self._load()
        if name not in self._obj_map:
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry')
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order in which they were registered."""
        self._load()
        return list(self._obj_map)


@contextmanager
def imported_code() -> Iterator[None]:
    """Take names that register within for a user's: they win over built-in ones, with a line in the log."""
    for registry in Registry._all:
        registry._load()
    before, Registry._importing = Registry._importing, True
    try:
        yield
    finally:
        Registry._importing = before
