"""The methods. `train.py --trainer NAME` picks one; all are imported at the first look-up.

In a checkout of CoOp, whose engine is the original Dassl, a method is registered when train.py imports its module.
"""

import importlib
import pkgutil

from dassl.engine import TRAINER_REGISTRY

LAST = (f"{__name__}.dept", f"{__name__}.lamm")  # wrap methods that are registered before
NO_METHODS = (f"{__name__}.parts", f"{__name__}.imagenet_templates")


def _methods() -> list[str]:
    """Dotted names of the modules that hold methods: those of this package and of its rooms."""
    names = [module.name for module in pkgutil.walk_packages(__path__, f"{__name__}.")]
    return sorted(name for name in names if not name.startswith(NO_METHODS))


def _register() -> None:
    for name in sorted(_methods(), key=lambda name: (name in LAST, name)):
        importlib.import_module(name)


if hasattr(TRAINER_REGISTRY, "on_first_use"):
    TRAINER_REGISTRY.on_first_use(_register)
else:
    from trainers.parts.engine.original import check_checkout, extend_cfg  # noqa: F401 - for train.py

    check_checkout()
