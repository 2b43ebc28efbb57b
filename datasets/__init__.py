"""Readers of data sets. DATASET.NAME picks one by its class name; all are imported at the first look-up."""

import importlib
import pkgutil

from dassl.data.datasets.build import DATASET_REGISTRY


def _register() -> None:
    """Import every module of this package but the commands, whose readers register themselves."""
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        if not module.ispkg and not module.name.startswith((f"{__name__}.prepare", f"{__name__}.doctor")):
            importlib.import_module(module.name)


DATASET_REGISTRY.on_first_use(_register)
