"""One prompted CLIP: towers, loading, tokenizing. Prompts are arguments of the forward; no model class is forked."""

from clip.clip import tokenize
from clip.model import CLIP
from clip.prompts import Encoded, Prompts, overwrite

__all__ = ["CLIP", "Encoded", "Prompts", "new_model", "overwrite", "tokenize"]

new_model = CLIP
"""Random weights from architecture numbers: the arguments of :class:`CLIP`."""
