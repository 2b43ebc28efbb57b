"""A learner of two stages: layer norms of the towers, then a linear classifier (2SFS, Farina et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip import CLIP, Encoded
from trainers.parts.prompts import TemplateText


class TwoStages(TemplateText):
    """Layer norms of the towers, and a classifier (C, E) that takes the place of the sentences in the second stage.

    What does not learn in the stage has no gradient, so that an optimizer leaves it alone.

    Args:
        towers: some of text, vision.
        in_blocks: only the norms inside the blocks learn.
    """

    second: Tensor

    def __init__(
        self,
        model: CLIP,
        classnames: list[str],
        template: str,
        truncate: bool,
        towers: tuple[str, ...],
        in_blocks: bool = False,
    ):
        super().__init__(model, classnames, template, truncate)
        blocks = (*model.transformer.resblocks, *getattr(model.visual, "blocks", ()))
        inside = {id(module) for block in blocks for module in block.modules()}
        norms = [
            parameter
            for name, module in model.named_modules()
            if isinstance(module, nn.LayerNorm)
            and ("vision" if name.startswith("visual.") else "text") in towers
            and (not in_blocks or id(module) in inside)
            for parameter in module.parameters()
        ]
        if not norms:
            raise ValueError(f"2SFS trains the layer norms of {towers}, but there are none in these towers")
        self.norms = nn.ParameterList(norms)
        self.classifier = nn.Parameter(torch.zeros(len(classnames), model.text_projection.shape[1]))
        self.register_buffer("second", torch.tensor(False))
        self.unknown: list[int] = []  # classes without a row, when those of a file are others
        self.begin(second=False)

    def begin(self, second: bool) -> None:
        """Start a stage, or go on in it."""
        self.in_second = second
        self.second.fill_(second)
        self.norms.requires_grad_(not second)
        self.classifier.requires_grad_(second)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.begin(bool(self.second))

    def text_features(self) -> Encoded | None:
        return Encoded(self.classifier, self.classifier[:, None]) if self.in_second else None
