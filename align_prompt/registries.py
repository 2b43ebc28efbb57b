"""Names of what there is: methods, data sets, backbones, configs, recipes."""

from __future__ import annotations

from pathlib import Path

import dassl

ROOT = Path(dassl.__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
RECIPES = ROOT / "recipes"


def names_of_methods() -> list[str]:
    """Registered methods, sorted."""
    import dense  # noqa: F401 - registers the dense tasks
    import trainers  # noqa: F401 - registers the methods
    from dassl.engine import TRAINER_REGISTRY

    return sorted(TRAINER_REGISTRY.registered_names())


def config_names(folder: str) -> list[str]:
    """Configs of a folder of configs without .yaml, such as "datasets" or "trainers/ALIGN"."""
    import datasets  # noqa: F401 - registers the data sets
    import dense  # noqa: F401 - registers theirs
    from dassl.config import files

    return files.config_names(CONFIGS / folder)


def listed(kind: str) -> list[str]:
    """Rows that `list KIND` prints.

    Raises:
        KeyError: an unknown kind.
    """
    if kind == "methods":
        return names_of_methods()
    if kind == "datasets":
        return config_names("datasets")
    if kind == "backbones":
        from clip import available_models
        from clip.towers.names import FORMS, pretrained_names

        return [*available_models(), *pretrained_names(), *FORMS]
    if kind == "configs":
        methods = sorted({path.stem for path in (CONFIGS / "trainers").iterdir()})
        return [f"{method}/{name}" for method in methods for name in config_names(f"trainers/{method}")]
    if kind == "recipes":
        return sorted(path.stem for path in RECIPES.glob("*.yaml"))
    raise KeyError(f"nothing is listed as {kind!r}, expected one of {', '.join(KINDS)}")


KINDS = ("methods", "datasets", "backbones", "configs", "recipes")
