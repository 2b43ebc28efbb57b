"""CLIP with a learner: the forward that every method shares, and features of fixed sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip import CLIP, Encoded, Prompts
from clip.chunks import Chunks, in_chunks, split_rows
from clip.record import record
from clip.text_plan import Remembered
from trainers.parts.losses import cosine_logits, normalise
from trainers.parts.memory import MemoryPlan
from trainers.parts.prompts import Learner, TemplateText, round_to_fp16

Score = Callable[[Encoded, Encoded, Tensor], Tensor]


class Output(NamedTuple):
    """Result of a prompted forward, the same in training and evaluation.

    logits: (B, C). image: features of B * M rows, image-major. text: features of C * N rows, class-major; of B * C
    rows, image-major, when the text depends on the image.
    """

    logits: Tensor
    image: Encoded
    text: Encoded


def cosine_score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
    """CLIP's logits: scale * cosine of the pooled features, (B, C) (CLIP, Section 2.3)."""
    return cosine_logits(image.pooled, text.pooled, scale)


class PromptedCLIP(nn.Module):
    """A frozen CLIP, the learner that prompts it, and the score that compares its two sides."""

    def __init__(self, model: CLIP, learner: Learner, score: Score):
        super().__init__()
        self.learner, self.clip, self.score = learner, model, score  # what learns is named first, wherever it is
        self.memory = MemoryPlan()
        self.pairs: Remembered[tuple[Tensor, Tensor | None, Tensor]] = Remembered()  # of images and classes

    def encode_text(self, image: Encoded | None = None) -> Encoded:
        """All classes: pooled (C * N, E), tokens (C * N, L, E), class-major; (C * N, 0, E) in an evaluation by cosine.

        The text of a conditional learner depends on `image`, B encoded images, which must then be given: pooled
        (B * C, E), image-major, and no tokens, (B * C, 0, E).

        Raises:
            ValueError: no image for a conditional learner.
        """
        if self.learner.conditional:
            if image is None:
                raise ValueError(f"the text of {type(self.learner).__name__} depends on the image: give encoded images")
            return self._encode_conditional_text(image.pooled)
        known = self.learner.text_features()
        if known is not None:
            return known
        ids, prompts = self.learner.text_prompts()
        # An evaluation may have tens of thousands of sentences, such as the captions of a retrieval set.
        local = self.score is not cosine_score
        tokens = local or torch.is_grad_enabled()
        chunks = self.memory.text(self, self.clip, local)
        return self.clip.encode_text(ids, prompts, self.learner.label_tokens(), chunks, tokens)

    def _encode_conditional_text(self, image: Tensor) -> Encoded:
        """Text of every pair of an image (B, E) and a class, `learner.chunk_rows` pairs at a time without a budget."""
        ids, prompts = self.learner.conditional_prompts(image)
        given = ids, prompts.slots
        ids, slots, prompt_index = self.pairs(lambda: self._pairs(len(image), *given), given, len(image))
        prompts = Prompts(prompts.layers, slots, prompt_index)
        chosen = self.memory.text_rows or (self.memory.budget and torch.is_grad_enabled())
        chunks = self.memory.text(self, self.clip, False) if chosen else Chunks(self.learner.chunk_rows)
        return self.clip.encode_text(ids, prompts, chunks=chunks, tokens=False)

    @staticmethod
    def _pairs(images: int, ids: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Token ids (B * C, L), slots and image (B * C,) of row b * C + c, from those of the classes."""
        prompt_index = torch.arange(images, device=ids.device).repeat_interleave(len(ids))
        if slots is not None and slots.dim() == 2:
            slots = slots.repeat(images, 1)
        return ids.repeat(images, 1), slots, prompt_index

    def encode_image(self, image: Tensor, tokens: Tensor | None = None) -> Encoded:
        """Images under all M visual modes: pooled (B * M, E), tokens (B * M, 1 + P + m, E), image-major."""
        prompts = self.learner.vision_prompts()
        if tokens is None:
            tokens = self.clip.visual.embed(image)
        if prompts is None:
            return self._encode_images(tokens)
        modes = self.learner.vision_modes
        rows = torch.arange(tokens.shape[0] * modes, device=tokens.device)  # b * M + m

        def encode(some: Tensor) -> Encoded:
            def of_rows(layer: Tensor) -> Tensor:
                layer = layer.index_select(0, some % modes)  # (M, m, d) -> (rows, m, d)
                return round_to_fp16(layer) if self.learner.half_prompts else layer

            layers = tuple(None if layer is None else of_rows(layer) for layer in prompts.layers)
            return self._encode_images(tokens.index_select(0, some // modes), prompts._replace(layers=layers))

        chunks = self.memory.image(self, self.clip, tokens, prompts, rows.shape[0])
        parts = in_chunks(encode, [(some,) for some in split_rows(rows, chunks)], chunks)
        return parts[0] if len(parts) == 1 else Encoded(*(torch.cat(side) for side in zip(*parts)))

    def _encode_images(self, tokens: Tensor, prompts: Prompts | None = None) -> Encoded:
        visual, learner = self.clip.visual, self.learner
        if not learner.reads_inside:
            return visual.encode(tokens, prompts)
        with record(self.clip, "vision", learner.inside, learner.attention_inside) as seen:
            encoded = visual.encode(tokens, prompts)
        return learner.image_features(encoded, seen)

    def forward(self, image: Tensor, text: Encoded | None = None, tokens: Tensor | None = None) -> Output:
        """Logits of images (B, 3, H, W) against all classes.

        `text` may be given when the classes were encoded before, `tokens` (B, 1 + P, d) when the patches were embedded.
        """
        return self.compare(self.encode_image(image, tokens), text)

    def compare(self, image: Encoded, text: Encoded | None = None) -> Output:
        """Logits of encoded images against all classes."""
        if text is None:
            text = self.encode_text(image)
        logits = self.score(image, text, self.clip.logit_scale.exp())
        bias = getattr(self.clip, "logit_bias", None)  # SigLIP's; the same for all classes
        return Output(logits if bias is None else logits + bias, image, text)


@torch.no_grad()
def template_features(model: CLIP, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Pooled text features of every class in every template, (T, C, E), not normalised, without gradient."""
    device = model.token_embedding.weight.device
    sentences = [TemplateText(model, classnames, template).ids.to(device) for template in templates]
    return torch.stack([model.encode_text(ids).pooled for ids in sentences])


def ensemble_features(model: CLIP, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Classifier of several templates, (C, E): the mean of each class's normalised features, normalised again.

    CLIP, Section 3.1.4.
    """
    return normalise(normalise(template_features(model, classnames, templates)).mean(dim=0))
