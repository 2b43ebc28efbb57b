"""A CLIP that behaves like OpenAI's when its parts are called the old way, for code written for the CoOp repository.

Such code builds its own text encoder out of `transformer`, `ln_final` and `text_projection`, calls `visual(image)` and
expects tensors, with sequences as (L, rows, d) and the causal mask inside the transformer. The classes below add these
calls to the same weights under the same names; every call of this project passes a mask or prompts and goes through
unchanged.

They also have the prompts of the forks that are built with ``design_details``: learned in the towers (IVLP, VPT,
PromptSRC: ``vision_depth``, ``vision_ctx``, ``language_depth``, ``language_ctx``), or handed to ``visual`` and, as
``[x, deep prompts, count]``, to ``transformer`` (MaPLe).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.build import build_model
from clip.checkpoints import load_checkpoint
from clip.eva import EvaVisionTransformer
from clip.layers import Block, Transformer
from clip.model import CLIP, VisionTransformer
from clip.prompts import Prompts, overwrite
from clip.resnet import ModifiedResNet
from clip.towers.model import TowerCLIP

FACTS = ("quick_gelu", "vision_heads", "transformer_heads", "rope_grid")
"""Entries that :func:`plain_copy` stores beside the weights: what their shapes do not tell."""


class _SequenceFirst(nn.Module):
    """Called with a sequence alone, takes and returns (L, rows, d) and brings its own mask."""

    causal = False

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """x: (L, rows, d), or with further arguments (rows, L, d). Returns the same shape."""
        if args or options:
            return super().forward(x, *args, **options)
        return super().forward(x.transpose(0, 1), self.causal).transpose(0, 1)


class LegacyBlock(_SequenceFirst, Block):
    """A block for code that calls it with a sequence alone, or with ``[x, deep prompts, count of those used]``."""

    takes_prompts = False

    @property
    def own(self) -> Tensor | None:
        """(n, d), learned in this block; None without."""
        return getattr(self, "VPT_shallow", None)

    def forward(self, x: Any, *args: Any, **options: Any) -> Any:
        """x: (L, rows, d), or a list as above; with further arguments (rows, L, d). Returns the same kind."""
        if args or options:
            return super().forward(x, *args, **options)
        if isinstance(x, (list, tuple)):
            x, deep, count, *more = x
            if self.takes_prompts and count < len(deep):
                x, count = self.replaced(x, deep[count]), count + 1
            return [super().forward(x), deep, count, *more]
        return super().forward(x if self.own is None else self.replaced(x, self.own))

    def replaced(self, x: Tensor, prompts: Tensor) -> Tensor:
        """x (L, rows, d) with prompts (n, d) behind the first token of a text, or as the last tokens of an image."""
        number = prompts.shape[-2]
        slots = torch.arange(number, device=x.device) + (1 if self.causal else len(x) - number)
        return overwrite(x.transpose(0, 1), slots, prompts).transpose(0, 1)


class LegacyTransformer(_SequenceFirst, Transformer):
    """A transformer for code that calls it with a sequence alone, or with the list of :class:`LegacyBlock`."""

    def forward(self, x: Any, *args: Any, **options: Any) -> Any:
        """x: as for its blocks. Returns the same kind."""
        own = any(block.own is not None for block in self.resblocks)
        if isinstance(x, (list, tuple)) or (own and not args and not options):
            return self.resblocks(x)
        return super().forward(x, *args, **options)


class LegacyVisionTransformer(VisionTransformer):
    """The ViT tower, returning pooled features."""

    def forward(  # type: ignore[override]
        self, image: Tensor, prompts: Tensor | None = None, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        """image: (B, 3, side, side); prompts, deep[i]: (n, d), of blocks 0 and i + 1. Returns (B, E)."""
        blocks: list[Any] = list(self.transformer.resblocks)
        if hasattr(self, "VPT"):
            prompts, deep = self.get_parameter("VPT"), [block.own for block in blocks if block.own is not None]
        layers = None if prompts is None else Prompts((prompts, *deep[: len(blocks) - 1]), None)
        return super().forward(image, layers).pooled


class LegacyResNet(ModifiedResNet):
    """The ResNet tower, returning pooled features."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """image: (B, 3, side, side). Returns (B, E), not normalised."""
        return super().forward(image).pooled


class LegacyEva(EvaVisionTransformer):
    """The EVA-style tower, returning pooled features."""

    @property
    def conv1(self) -> nn.Conv2d:
        """The patch embedding, whose type old code asks for."""
        return self.patch_embed.proj

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """image: (B, 3, side, side). Returns (B, E), not normalised."""
        return super().forward(image).pooled


class LegacyCLIP(CLIP):
    """A CLIP whose methods and parts return tensors, as OpenAI's do; made by :func:`as_legacy`."""

    def build_attention_mask(self) -> Tensor:
        """(context_length, context_length): 0 up to each position, -inf after it."""
        return causal_mask(self.context_length)

    def encode_image(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """image: (B, 3, side, side). Returns (B, E), not normalised."""
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:  # type: ignore[override]
        """text: (rows, L) token ids. Returns (rows, E), not normalised."""
        return super().encode_text(text).pooled

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities times exp(logit_scale): logits per image (B, rows) and per text (rows, B)."""
        features = F.normalize(self.encode_image(image), dim=-1), F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * features[0] @ features[1].t()
        return logits, logits.t()


LEGACY = {
    CLIP: LegacyCLIP,
    VisionTransformer: LegacyVisionTransformer,
    EvaVisionTransformer: LegacyEva,
    ModifiedResNet: LegacyResNet,
    Transformer: LegacyTransformer,
    Block: LegacyBlock,
}


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """(length, length) fp32: 0 on and below the diagonal, -inf above."""
    return torch.full((length, length), -torch.inf, device=device).triu_(1)


def as_legacy(model: CLIP) -> LegacyCLIP:
    """Gives `model` itself, and not a copy, the old way of being called; weights and their names stay.

    Raises:
        ValueError: towers of another library.
    """
    _refuse_other_towers(model)
    for module in model.modules():
        if type(module) in LEGACY:
            module.__class__ = LEGACY[type(module)]
    for module in model.transformer.modules():
        if isinstance(module, (LegacyTransformer, LegacyBlock)):
            module.causal = True
    for module in model.modules():
        if isinstance(module, LegacyTransformer):
            blocks: list[Any] = list(module.resblocks[1:])
            for block in blocks:
                block.takes_prompts = True
    assert isinstance(model, LegacyCLIP)
    return model


def _refuse_other_towers(model: CLIP) -> None:
    if isinstance(model, TowerCLIP):
        raise ValueError(f"`from clip import clip` needs CLIP's own towers; this backbone is {model.family}")


def add_own_prompts(model: LegacyCLIP, design_details: dict[str, Any]) -> None:
    """Puts learned prompts into the towers, drawn from N(0, 0.02²), as ``design_details`` ask, whatever the trainer.

    ``vision_depth`` J: ``visual.VPT`` at the input and ``VPT_shallow`` in blocks 1..J-1, each (``vision_ctx``, d).
    ``language_depth``: ``VPT_shallow`` (``language_ctx``, d) in text blocks 1..J-1; the first prompts are the caller's.

    Raises:
        ValueError: prompts in an image tower that is no ViT, a depth without its number of prompts, or one beyond the
            tower.
    """
    towers: list[tuple[str, Any]] = [("vision", model.visual), ("language", model)]
    for side, tower in towers:
        depth, number = int(design_details.get(f"{side}_depth") or 0), int(design_details.get(f"{side}_ctx") or 0)
        if depth < 1:
            continue
        if side == "vision" and not isinstance(tower, LegacyVisionTransformer):
            raise ValueError(f"design_details ask for vision_depth {depth}; only a ViT of OpenAI's form takes prompts")
        blocks: list[Any] = list(tower.transformer.resblocks)
        if number < 1 or depth > len(blocks):
            raise ValueError(
                f"design_details ask for {side}_depth {depth} with {side}_ctx {number}; expected a depth of at most "
                f"{len(blocks)}, the number of blocks, and at least 1 prompt"
            )
        width = tower.transformer.width
        holders = [(block, "VPT_shallow") for block in blocks[1:depth]]
        for module, name in [(tower, "VPT"), *holders] if side == "vision" else holders:
            setattr(module, name, nn.Parameter(0.02 * torch.randn(number, width)))


def build_legacy_model(state_dict: dict[str, Tensor], design_details: dict[str, Any] | None = None) -> LegacyCLIP:
    """The model of :func:`clip.build_model` in the old way of being called, with the info of :func:`plain_copy`.

    Raises:
        ValueError: see :func:`clip.build_model` and :func:`add_own_prompts`.
    """
    info = {name: int(state_dict[name]) for name in FACTS if name in state_dict}
    weights = {name: value for name, value in state_dict.items() if name not in FACTS}
    quick_gelu = bool(info.pop("quick_gelu")) if "quick_gelu" in info else None
    model = as_legacy(build_model(weights, None, quick_gelu, **info))
    add_own_prompts(model, design_details or {})
    return model


def plain_copy(path: Path, folder: Path) -> Path:
    """A copy of the CLIP at `path` that plain `torch.load` reads: tensors only, the activation and heads among them.

    The copy's name holds the hash of the original; it is made once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a CLIP.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    target = folder / f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"
    if not target.is_file():
        model, _ = load_checkpoint(path)
        _refuse_other_towers(model)
        numbers = list(zip(FACTS, (model.quick_gelu, model.visual.heads, model.transformer.heads)))
        if isinstance(model.visual, EvaVisionTransformer):
            numbers.append(("rope_grid", model.visual.rope_grid))
        folder.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        torch.save({**model.state_dict(), **{name: torch.tensor(int(value)) for name, value in numbers}}, temporary)
        os.replace(temporary, target)
    return target
