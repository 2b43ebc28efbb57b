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
from clip.text_plan import Remembered
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
        self.checked: Remembered[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = Remembered()
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
        given = ids, None if prompts is None else prompts.slots, None if labels is None else labels.slots
        rows, tower = len(ids), self.transformer
        vectors = None if prompts is None else check_prompts(prompts, rows, tower.width, tower.layers, "text prompts")
        words = None if labels is None else check_prompts(labels, rows, tower.width, 1, "label tokens")
        device = self.token_embedding.weight.device
        checked = self.checked(lambda: self._check(*given, vectors, words), given, vectors, words, device)
        ids, stop, slots, label_slots = checked
        prompts = None if prompts is None else prompts._replace(slots=slots)
        labels = None if labels is None else labels._replace(slots=label_slots)

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

    def _check(
        self, ids: Tensor, slots: Tensor | None, label_slots: Tensor | None, vectors: int | None, words: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Checks of values, the only part that waits for the device: ids (rows, Lcut), stop (rows,) and slots there."""
        if ids.dim() != 2 or ids.is_floating_point() or 0 in ids.shape:
            raise ValueError(f"ids of shape {tuple(ids.shape)} and type {ids.dtype}; expected integers (rows, L)")
        low, high = torch.stack(ids.aminmax()).tolist()
        if low < 0 or high >= self.vocab_size:
            raise ValueError(f"token ids span {low}..{high}, but this model's vocabulary has {self.vocab_size} entries")
        if ids.shape[1] != self.context_length and not self.transformer.cuts:
            raise ValueError(f"ids have {ids.shape[1]} columns, expected all {self.context_length} of this model")
        ids = ids.to(self.token_embedding.weight.device)
        stop = self.words.ends(ids)
        length = int(stop.max()) + 1
        if vectors is not None:
            slots = check_slots(slots, len(ids), vectors, stop, "text prompts")
        if words is not None:
            inside = torch.full_like(stop, ids.shape[1])
            label_slots = check_slots(label_slots, len(ids), words, inside, "label tokens")
            length = max(length, int(label_slots.max()) + 1) if words else length
        return ids[:, :length] if self.transformer.cuts else ids, stop, slots, label_slots

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
