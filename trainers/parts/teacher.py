"""Frozen teachers: the features of plain CLIP, or of a larger model, that a method compares its own with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import clip
from clip import CLIP
from trainers.parts.losses import cosine_logits
from trainers.parts.prompted_clip import ensemble_features


class Teacher:
    """Image and text side of a frozen CLIP, without gradients, whatever adapters the model has got since.

    Args:
        model: the method's own CLIP, or another one.
        text: (C, E) class features, computed once, before the model is adapted and cast.

    Raises:
        ValueError: class features of another width than the model's.
    """

    def __init__(self, model: CLIP, text: Tensor):
        width = model.visual.output_dim
        if text.dim() != 2 or text.shape[1] != width:
            raise ValueError(f"class features of a teacher have shape {tuple(text.shape)}, expected (C, {width})")
        self.model, self.text = model, text.detach()

    @torch.no_grad()
    def image(self, image: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """Pooled features (B, E), not normalised, of images (B, 3, H, W) or of their embedded patches `tokens`.

        Raises:
            ValueError: neither is given.
        """
        with self.model.without_adapters():
            if tokens is None:
                if image is None:
                    raise ValueError("a teacher needs images or their embedded patches, got neither")
                tokens = self.model.visual.embed(image)
            return self.model.visual.encode(tokens).pooled

    @torch.no_grad()
    def encode_text(self, ids: Tensor) -> Tensor:
        """Pooled features (rows, E), not normalised, of token ids (rows, L)."""
        with self.model.without_adapters():
            return self.model.encode_text(ids, tokens=False).pooled

    def logits(self, image: Tensor) -> Tensor:
        """(B, C) of image features (B, E) against the teacher's classes; gradients pass to the features."""
        return cosine_logits(image, self.text, self.model.logit_scale.exp().detach())


def load_teacher(
    name: str,
    classnames: Sequence[str],
    templates: Sequence[str],
    resolution: int,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A teacher of another name than the student, whose classes are the ensemble of `templates`.

    Args:
        name: of :func:`clip.load`.
        classnames: C names.
        templates: sentences with {}.
        resolution: side of the images in pixels that the student gets.
        width: E that the method needs; None where it maps features of any width itself.
        dtype: type of the matrices once the classes are encoded in fp32.
        device: where the teacher stays.

    Raises:
        ValueError: images or features of another size.
    """
    model = clip.load(name, device)[0].requires_grad_(False)
    own, side = model.visual.output_dim, model.visual.input_resolution
    if side != resolution:
        raise ValueError(f"the teacher {name} takes {side}x{side} images, the student {resolution}x{resolution}")
    if width is not None and own != width:
        raise ValueError(
            f"the features of the teacher {name} have {own} numbers, those of the student {width}: choose a teacher "
            "of the same width, or a method that maps one to the other"
        )
    teacher = Teacher(model, ensemble_features(model, classnames, templates))
    clip.convert_weights(model, dtype)
    return teacher
