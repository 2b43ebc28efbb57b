"""The methods. Importing this package registers them; `train.py --trainer NAME` picks one."""

from . import align, contrastive, coop, zsclip

__all__ = ["align", "contrastive", "coop", "zsclip"]
