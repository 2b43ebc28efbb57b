"""Text towers of open_clip and transformers that take prompts at the input of every block.

The tower's own forward runs, with its masks and its pooling; prompts are written into what its token embedding returns
and into what its blocks get.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clip.archive import CheckpointError
from clip.prompts import Encoded, Prompts, overwrite


class TextTower(nn.Module):
    """Base of the text towers.

    Args:
        tower: the module.
        blocks: name of its blocks in the module.
        width: d.
        heads: attention heads of a block.

    Attributes:
        cuts: nothing behind an end-of-text token reaches the pooled feature, so that it need not be computed.
    """

    cuts = False

    def __init__(self, tower: Any, blocks: str, width: int, heads: int) -> None:
        super().__init__()
        self.tower, self._blocks, self.width, self.heads = tower, blocks, width, heads

    @property
    def resblocks(self) -> Any:
        """The blocks, first to last."""
        return self.tower.get_submodule(self._blocks)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.resblocks)

    @property
    def embedding(self) -> nn.Embedding:
        """The token table."""
        raise NotImplementedError

    def pooled(self, ids: Tensor) -> Tensor:
        """(rows, E) of token ids (rows, L), by the tower's own forward."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """Features (rows, L, E) of the output (rows, L, d) of the last block."""
        raise NotImplementedError

    def encode(self, ids: Tensor, prompts: Prompts | None, labels: Prompts | None, stop: Tensor) -> Encoded:
        """Pooled features and those of all positions.

        Args:
            ids: (rows, L).
            prompts, labels: as of :meth:`clip.CLIP.encode_text`, given by row.
            stop: (rows,) position of the end-of-text token; label slots behind it change nothing.

        Returns:
            pooled (rows, E), tokens (rows, L, E).
        """
        last: list[Tensor] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(_hook(self.embedding, lambda out: _embedded(out, prompts, labels, stop)))
            layers = () if prompts is None else prompts.layers
            for block, layer in zip(self.resblocks[1:], layers[1:]):
                if prompts is not None and prompts.slots is not None and layer is not None:
                    stack.enter_context(_replaced(block, prompts.slots, layer))
            stack.enter_context(_hook(self.resblocks[-1], last.append))
            pooled = self.pooled(ids)
        return Encoded(pooled, self.project(last[0][:, : ids.shape[1]]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Blocks alone, without any mask, of (rows, L, d): for measuring what they keep."""
        for block in self.resblocks:
            x = _first(self.block(block, x))
        return x

    def block(self, block: nn.Module, x: Tensor) -> Any:
        """Output of one block without a mask."""
        return block(x)


class OpenClipText(TextTower):
    """open_clip's own text transformer: causal or not, with any of its poolings, or a class token as in CoCa."""

    def __init__(self, tower: Any) -> None:
        super().__init__(tower, "transformer.resblocks", tower.width, tower.heads)
        if not getattr(tower.transformer, "batch_first", True):
            raise CheckpointError("this version of open_clip runs its text tower with the batch second: update it")
        if tower.pool_type == "none":
            raise CheckpointError("text_cfg has the pool_type none, so a text has no feature")
        causal = tower.attn_mask is not None and tower.cls_emb is None
        self.cuts = causal and tower.pool_type in ("argmax", "eos", "first")
        if self.cuts:
            tower.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)

    @property
    def embedding(self) -> nn.Embedding:
        return self.tower.token_embedding

    def pooled(self, ids: Tensor) -> Tensor:
        return _first(self.tower(ids))

    def project(self, x: Tensor) -> Tensor:
        x, projection = self.tower.ln_final(x), self.tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection.to(x.dtype)


class SiglipText(TextTower):
    """transformers' text tower of SigLIP and SigLIP 2: no mask, the last position is pooled, padding or not."""

    def __init__(self, tower: Any) -> None:
        super().__init__(tower, "encoder.layers", tower.config.hidden_size, tower.config.num_attention_heads)

    @property
    def embedding(self) -> nn.Embedding:
        return self.tower.embeddings.token_embedding

    def pooled(self, ids: Tensor) -> Tensor:
        return self.tower(input_ids=ids).pooler_output

    def project(self, x: Tensor) -> Tensor:
        return self.tower.head(self.tower.final_layer_norm(x))

    def block(self, block: nn.Module, x: Tensor) -> Any:
        return block(x, None)


class HuggingFaceText(TextTower):
    """A language model of transformers in open_clip's wrapper, such as BERT or XLM-R; padding is masked."""

    def __init__(self, tower: Any) -> None:
        for name in ("encoder.layer", "layers", "block", "encoder.block"):
            with contextlib.suppress(AttributeError):
                tower.transformer.get_submodule(name)
                break
        else:
            raise CheckpointError(f"the blocks of its text tower, {type(tower.transformer).__name__}, are not known")
        config = tower.config
        sizes = [
            next(getattr(config, name) for name in names if hasattr(config, name))
            for names in (("hidden_size", "d_model"), ("num_attention_heads", "encoder_attention_heads", "num_heads"))
        ]
        super().__init__(tower, f"transformer.{name}", *sizes)

    @property
    def embedding(self) -> nn.Embedding:
        return self.tower.transformer.get_input_embeddings()

    def pooled(self, ids: Tensor) -> Tensor:
        return _first(self.tower(ids))

    def project(self, x: Tensor) -> Tensor:
        return self.tower.proj(x)


def open_clip_text(tower: Any) -> TextTower:
    """The wrapper of a text tower that open_clip built."""
    import open_clip

    own = isinstance(tower, open_clip.transformer.TextTransformer)
    return OpenClipText(tower) if own else HuggingFaceText(tower)


def _embedded(x: Tensor, prompts: Prompts | None, labels: Prompts | None, stop: Tensor) -> Tensor:
    """Embedded tokens (rows, L, d) with prompts, then labels, at their slots."""
    if prompts is not None and prompts.slots is not None:
        x = overwrite(x, prompts.slots, prompts.first)
    if labels is None or labels.slots is None:
        return x
    slots = labels.slots.to(x.device).expand(len(x), -1)
    kept = x.gather(1, slots[..., None].expand(-1, -1, x.shape[-1]))
    inside = (slots < stop.to(x.device)[:, None])[..., None]  # unmasked towers read what is behind the end, too
    return overwrite(x, slots, torch.where(inside, labels.first.to(x.dtype), kept))


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@contextlib.contextmanager
def _hook(module: nn.Module, change: Any) -> Iterator[None]:
    """Calls `change` with the output of a module, which what it returns replaces unless it is None."""

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        found = change(_first(out))
        return found if found is None or not isinstance(out, tuple) else (found, *out[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _replaced(block: nn.Module, slots: Tensor, values: Tensor) -> Iterator[None]:
    """Overwrites `slots` of the sequence that a block gets."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (overwrite(args[0], slots, values), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": overwrite(kwargs["hidden_states"], slots, values)}

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _cut_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The causal mask of open_clip's transformer as long as its sequence."""
    length = args[0].shape[1]
    return args, {**kwargs, "attn_mask": kwargs["attn_mask"][..., :length, :length]}
