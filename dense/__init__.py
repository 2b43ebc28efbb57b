"""Dense tasks on a CLIP's image tower: segmentation, detection, and LLaVA, as `train.py --trainer NAME` runs them.

backbone.py: the tower with features at four strides. data.py: data sets of pictures with masks, boxes or questions.
scenes.py: the embedded one. trainer.py: what the tasks share. Each task is a folder; its packages are an extra
(requirements-dense.txt), imported when they are needed.
"""

import importlib
import pkgutil

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.engine.build import TRAINER_REGISTRY


def _register() -> None:
    """Import every module of this package; trainers and data sets register themselves."""
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)


TRAINER_REGISTRY.on_first_use(_register)
DATASET_REGISTRY.on_first_use(_register)
