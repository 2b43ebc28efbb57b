"""Readers of data sets. Importing this package registers them under their class names; DATASET.NAME picks one."""

from . import digits, emoji, image_text

__all__ = ["digits", "emoji", "image_text"]
