"""The methods. Importing this package registers them all; `train.py --trainer NAME` picks one."""

import importlib
import pkgutil

COMMANDS = frozenset({"import_checkpoint", "new_method"})  # command-line tools, run with `python -m trainers.NAME`
LAST = ("lamm",)  # made from methods that are registered before

_names = {module.name for module in pkgutil.iter_modules(__path__)} - COMMANDS
for _name in (*sorted(_names - set(LAST)), *LAST):
    importlib.import_module(f"{__name__}.{_name}")
