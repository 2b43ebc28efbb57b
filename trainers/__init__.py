"""The methods. Importing this package registers them all; `train.py --trainer NAME` picks one."""

import importlib
import pkgutil

COMMANDS = frozenset({"import_checkpoint", "new_method"})  # command-line tools, run with `python -m trainers.NAME`

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in COMMANDS:
        importlib.import_module(f"{__name__}.{_module.name}")
