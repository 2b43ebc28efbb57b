"""A CLIP whose towers are other libraries' modules, with the interface of :class:`clip.CLIP`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from clip.adapters import TOWERS, Blocks, Place
from clip.chunks import Chunks, in_chunks, split_rows
from clip.model import CLIP
from clip.prompts import Encoded, Prompts, check_prompts, check_slots
from clip.text_layout import Layout, whole_layout
from clip.towers.image import ImageTower, PooledTower
from clip.towers.text import TextTower
from clip.words import Words


class TowerCLIP(CLIP):
    """Towers of open_clip, timm or transformers, and their tokenizer.

    Args:
        visual: the image tower.
        transformer: the text tower.
        words: the tokenizer.
        logit_scale: one number, the logarithm of the scale.
        logit_bias: one number, added to the logits (SigLIP); None for none.
        family: for messages, such as "open_clip's EVA02-B-16".
    """

    def __init__(
        self,
        visual: ImageTower | PooledTower,
        transformer: TextTower,
        words: Words,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        family: str,
    ) -> None:
        nn.Module.__init__(self)  # none of CLIP's own layers
        self.visual: Any = visual
        self.transformer: Any = transformer
        self.words, self.family = words, family
        self.context_length, self.vocab_size = words.context_length, words.vocab_size
        self.logit_scale = nn.Parameter(logit_scale.detach().float().reshape(()).clone())
        self.logit_bias = None if logit_bias is None else nn.Parameter(logit_bias.detach().float().reshape(()).clone())

    @property
    def token_embedding(self) -> nn.Embedding:  # type: ignore[override] # a module of the text tower
        """The token table (V, d)."""
        return self.transformer.embedding

    def encode_text(
        self,
        ids: Tensor,
        prompts: Prompts | None = None,
        labels: Prompts | None = None,
        chunks: Chunks | Callable[[Layout], Chunks | None] | None = None,
        tokens: bool = True,
    ) -> Encoded:
        """As :meth:`clip.CLIP.encode_text`, row by row: without a causal mask sentences share nothing."""
        if ids.dim() != 2 or ids.is_floating_point() or 0 in ids.shape:
            raise ValueError(f"ids of shape {tuple(ids.shape)} and type {ids.dtype}; expected integers (rows, L)")
        low, high = torch.stack(ids.aminmax()).tolist()
        if low < 0 or high >= self.vocab_size:
            raise ValueError(f"token ids span {low}..{high}, but this model's vocabulary has {self.vocab_size} entries")
        rows, tower, device = len(ids), self.transformer, self.token_embedding.weight.device
        ids = ids.to(device)
        if ids.shape[1] != self.context_length and not tower.cuts:
            raise ValueError(f"ids have {ids.shape[1]} columns, expected all {self.context_length} of this model")
        stop = self.words.ends(ids)
        length = int(stop.max()) + 1
        if prompts is not None:
            count = check_prompts(prompts, rows, tower.width, tower.layers, "text prompts")
            prompts = prompts._replace(slots=check_slots(prompts.slots, rows, count, stop, "text prompts"))
        if labels is not None:
            count = check_prompts(labels, rows, tower.width, 1, "label tokens")
            inside = torch.full_like(stop, ids.shape[1])
            slots = check_slots(labels.slots, rows, count, inside, "label tokens")
            labels, length = labels._replace(slots=slots), max(length, int(slots.max()) + 1) if count else length
        if tower.cuts:
            ids = ids[:, :length]

        def encode(some: Tensor) -> Encoded:
            own = None if prompts is None else prompts.rows(some)
            label = None if labels is None else labels.rows(some)
            found = tower.encode(ids[some], own, label, stop[some])
            return found if tokens else Encoded(found.pooled, found.tokens[:, :0])

        if callable(chunks):
            chunks = chunks(whole_layout([ids.shape[1] - 1] * rows))
        calls = [(some,) for some in split_rows(torch.arange(rows, device=device), chunks)]
        parts = in_chunks(encode, calls, chunks)
        return Encoded(*(torch.cat(side) for side in zip(*parts)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as of :class:`clip.CLIP`, plus the bias: the sigmoid is SigLIP's probability of a pair."""
        by_image, _ = super().forward(image, text)
        if self.logit_bias is not None:
            by_image = by_image + self.logit_bias.to(by_image.dtype)
        return by_image, by_image.t()

    def add_adapters(
        self,
        factory: Callable[[nn.Module, Place], nn.Module],
        towers: Iterable[str] = TOWERS,
        blocks: Blocks = "all",
        parts: Iterable[str] = ("q", "k", "v"),
    ) -> NoReturn:
        """Raises ValueError: the projections of foreign blocks have other names and shapes."""
        raise ValueError(f"adapters (CLIPLoRA) need CLIP's own towers; this backbone is {self.family}")
