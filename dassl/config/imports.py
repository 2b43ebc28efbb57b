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


class UntrustedCode(ImportError):
    """A module that is not to be run, see `run_only`."""


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
    unique = f"_imported_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def imports_of(file: str | Path) -> list[str]:
    """IMPORTS of a config or its bases, needed before its other keys can be checked; errors are left to that check."""
    with contextlib.suppress(OSError, ValueError):
        names = {pair.key: pair.value for pair in config_pairs(file)}.get("IMPORTS")
        return list(names) if isinstance(names, (list, tuple)) else []
    return []
