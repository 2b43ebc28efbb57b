"""Prompt learning for CLIP, from Python: train a method, load what was trained, name the classes of pictures.

    import align_prompt

    model = align_prompt.load("output/quickstart/ALIGN")
    model.predict(["three.png", "seven.png"], top=3)

The same as a program: `python -m align_prompt --help`. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align_prompt.api import backbones, datasets, fit, load, methods

if TYPE_CHECKING:
    from align_prompt.model import Model
    from align_prompt.prediction import Prediction

__version__ = "0.2.0.dev0"
__all__ = ["Model", "Prediction", "__version__", "backbones", "datasets", "fit", "load", "methods"]

_LAZY = {"Model": "align_prompt.model", "Prediction": "align_prompt.prediction"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
