"""Modules of the user that register trainers or data sets: --import and the config key IMPORTS."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from dassl.config.files import config_pairs
from dassl.utils.errors import error_line
from dassl.utils.registry import imported_code


class UntrustedCode(ImportError):
    """A module that is not to be run, see `run_only`."""


IMPORTED = "_imported_"
_folders: tuple[Path, ...] | None = None


def run_only(folders: Iterable[Path] | None) -> None:
    """From now on import only modules below these folders, and installed ones; None: all."""
    global _folders
    _folders = (
        None if folders is None else (*(Path(folder).resolve() for folder in folders), Path(sys.prefix).resolve())
    )


def _check_trust(name: str) -> None:
    """UntrustedCode for a module from elsewhere. No code runs: of a dotted name only the first part is looked up."""
    if _folders is None:
        return
    path: Path | None = Path(name).expanduser().resolve()
    if not name.endswith(".py"):
        spec = importlib.util.find_spec(name.split(".")[0])
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        path = next((Path(place).resolve() for place in places if place and Path(place).exists()), None)
    if path is None or not any(path.is_relative_to(folder) for folder in _folders):
        raise UntrustedCode(f"it would run code from elsewhere, {path or name}: look at it, and add --trust to run it")


def import_modules(names: Iterable[str]) -> dict[str, ModuleType]:
    """Import modules by dotted name (the current folder is searched too) or by the path of a .py file, each once.

    Returns:
        The modules by the names given.

    Raises:
        UntrustedCode: `run_only` excludes one.
        ImportError: there is no such module or file, or it fails while it is imported; the message says where.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append("")
    modules = {}
    for name in names:
        try:
            _check_trust(name)
            with imported_code():
                modules[name] = _import(name)
        except UntrustedCode:
            raise
        except Exception as err:  # foreign code may raise anything
            raise ImportError(f"cannot import {name!r}: {type(err).__name__}: {error_line(err)}") from err
    return modules


def _import(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _load(f"{_package(path.parent)}.{_word(path.stem)}", path)


def _package(folder: Path) -> str:
    """Name of a folder as a package, so that its files can import each other; a name of its own, which hides no other.

    Its `__init__.py` runs as for any package. A folder without one is a package, too, but none of its parent's.
    """
    start = folder / "__init__.py"
    if start.is_file() and (folder.parent / "__init__.py").is_file():
        return _load(f"{_package(folder.parent)}.{_word(folder.name)}", start, folder).__name__
    unique = f"{IMPORTED}{_word(folder.name)}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    if start.is_file():
        return _load(unique, start, folder).__name__
    if unique not in sys.modules:
        sys.modules[unique] = ModuleType(unique)
        sys.modules[unique].__path__ = [str(folder)]
    return unique


def _word(name: str) -> str:
    return name.replace(".", "_")


def _load(name: str, path: Path, folder: Path | None = None) -> ModuleType:
    """The module of a file, loaded once; `folder`: it is the `__init__.py` of that package."""
    if name in sys.modules:
        return sys.modules[name]
    places = None if folder is None else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def imports_of(file: str | Path) -> list[str]:
    """IMPORTS of a config or its bases, needed before its other keys can be checked; errors are left to that check."""
    with contextlib.suppress(OSError, ValueError):
        names = {pair.key: pair.value for pair in config_pairs(file)}.get("IMPORTS")
        return list(names) if isinstance(names, (list, tuple)) else []
    return []
