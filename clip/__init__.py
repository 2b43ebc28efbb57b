"""One prompted CLIP: towers, loading, tokenizing. Prompts are arguments of the forward; no model class is forked."""

from clip.api import available_models, build_model, convert_weights, load, save_model, tokenize
from clip.inputs import Input, input_of
from clip.model import CLIP
from clip.prompts import Encoded, Prompts, overwrite
from clip.record import Record, record

__all__ = [
    "CLIP",
    "Encoded",
    "Input",
    "Prompts",
    "Record",
    "available_models",
    "build_model",
    "convert_weights",
    "input_of",
    "load",
    "new_model",
    "overwrite",
    "record",
    "save_model",
    "tokenize",
]

new_model = CLIP
"""Random weights from architecture numbers: the arguments of :class:`CLIP`."""
