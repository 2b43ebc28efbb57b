"""RAdam under the import path of Dassl."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["RAdam"]


class RAdam(torch.optim.RAdam):
    """torch's RAdam with decoupled weight decay (Liu et al., 2020), as Dassl's own class computes it."""

    def __init__(self, params: Any, **options: Any):
        options.setdefault("decoupled_weight_decay", True)
        super().__init__(params, **options)
