"""Tuning: the options of methods, chosen on validation images by the same number of trials for each."""

from .study import Tuning

__all__ = ["Tuning"]
