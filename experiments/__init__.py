"""The task settings, recipes of them, and the runs a recipe stands for.

A top-level package: train.py does one run and knows no setting, while sweeps and reports both need the same list of
runs, with the same folders as the shell scripts.

    runs = expand(load_recipe("recipes/embedded_few_shot.yaml"))
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
