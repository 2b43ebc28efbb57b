"""Names that can be chosen in a config, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Registry"]


class Registry:
    """A table from names to classes or functions.

    `@REGISTRY.register()` above a class or `REGISTRY.register(obj)` enters it under its `__name__`, or under `name`.
    """

    def __init__(self, name: str):
        self._name = name
        self._obj_map: dict[str, Any] = {}
        self._pending: list[Callable[[], Any]] = []

    def on_first_use(self, load: Callable[[], Any]) -> None:
        """Call `load`, which imports modules that register, before the first look-up."""
        self._pending.append(load)

    def _load(self) -> None:
        while self._pending:
            self._pending.pop(0)()

    def _do_register(self, name: str, obj: Any, force: bool) -> None:
        if name in self._obj_map and not force:
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._obj_map[name] = obj

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
