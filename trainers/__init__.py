"""The methods. Importing this package registers them all; `train.py --trainer NAME` picks one."""

import importlib
import pkgutil

LAST = "trainers.lamm"  # wraps methods that are registered before


def _methods() -> list[str]:
    """Dotted names of the modules that hold methods: those of this package and of its rooms, without parts/."""
    names = [module.name for module in pkgutil.walk_packages(__path__, f"{__name__}.")]
    return sorted(name for name in names if not name.startswith(f"{__name__}.parts"))


for _name in sorted(_methods(), key=lambda name: (name == LAST, name)):
    importlib.import_module(_name)
