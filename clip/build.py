"""Builds a CLIP from a state dict."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from clip.archive import CheckpointError
from clip.convert import CONVERSIONS, EVA_MARK, architecture, check_equal, layout, unwrap
from clip.eva import ROPE_GRID
from clip.model import CLIP, HEAD_WIDTH

logger = logging.getLogger(__name__)

OWN_PROMPTS = ("vision_ctx", "language_ctx")


def build_model(
    state_dict: dict[str, Tensor],
    design_details: dict[str, Any] | None = None,
    quick_gelu: bool | None = None,
    vision_heads: int | None = None,
    transformer_heads: int | None = None,
    rope_grid: int = ROPE_GRID,
) -> CLIP:
    """A CLIP in evaluation mode, fp32, with its own copy of the weights. Draws no random numbers.

    Args:
        state_dict: weights under OpenAI's, open_clip's, the UTA release's or Hugging Face's names; their shapes tell
            the numbers of the architecture.
        design_details: accepted for code that passes ``{"trainer": "CoOp", ...}``. The model is the same for every
            trainer, because prompts are arguments of its forward.
        quick_gelu: QuickGELU (OpenAI's weights) when true, GELU when false; None = GELU for the UTA release's names,
            which tell it, and QuickGELU for others.
        vision_heads: heads of the image tower; width // 64 when None.
        transformer_heads: heads of the text tower; width // 64 when None.
        rope_grid: of an EVA-style image tower, which its weights do not tell; others have none.

    Returns:
        The model, strictly loaded.

    Raises:
        ValueError: weights that do not fit (the first errors are listed), or that are not finite.
    """
    _check_design_details(design_details)
    weights = unwrap(state_dict)
    names = layout(weights)
    if quick_gelu is None:
        quick_gelu = names != "uta"
    weights = CONVERSIONS[names](weights)
    numbers = architecture(weights)
    if transformer_heads is None:
        transformer_heads = max(1, numbers["transformer_width"] // HEAD_WIDTH)
    if EVA_MARK in weights:
        numbers["rope_grid"] = rope_grid
    with torch.device("meta"):  # no memory and no random draws for weights that are replaced at once
        model = CLIP(**numbers, transformer_heads=transformer_heads, vision_heads=vision_heads, quick_gelu=quick_gelu)
    check_equal(model.state_dict(), weights)
    copies = {
        key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in weights.items()
    }
    broken = [key for key, value in copies.items() if not torch.isfinite(value.sum())]
    if broken:
        raise CheckpointError(f"{len(broken)} weights have infinite numbers or NaN, such as {broken[0]}")
    model.load_state_dict(copies, strict=True, assign=True)
    return model.eval()


def _check_design_details(design_details: dict[str, Any] | None) -> None:
    if design_details is None:
        return
    wanted = [key for key in OWN_PROMPTS if design_details.get(key)]
    if wanted:
        logger.warning(
            "design_details ask for prompts inside the towers (%s); this CLIP has none: "
            "hand them to encode_image and encode_text as clip.Prompts",
            ", ".join(wanted),
        )
