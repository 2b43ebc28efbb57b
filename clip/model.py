"""CLIP: the vision transformer and the whole model, with prompts as arguments of the forward.

Parameter names are those of OpenAI's release, so its checkpoints load strictly. Nothing here belongs to one method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.adapters import TOWERS, Blocks, Place, add_adapters, merge_adapters, without_adapters
from clip.chunks import Chunks, draws, in_chunks, split_rows, whole
from clip.eva import EvaVisionTransformer
from clip.layers import (
    Block,
    KeyValue,
    LayerNorm,
    Transformer,
    append_prompts,
    causal_mask,
    check_image,
    set_drop_path,
)
from clip.prompts import Encoded, Prompts, check_prompts, overwrite
from clip.resnet import ModifiedResNet
from clip.text_layout import Layout
from clip.text_plan import PlanInputs, Remembered, TextPlan, make_plan
from clip.words import Words

HEAD_WIDTH = 64
"""Width of one attention head in every model OpenAI published; pass `heads` for other models."""


class VisionTransformer(nn.Module):
    """The ViT image tower.

    Args:
        input_resolution: side of the square image in pixels.
        patch_size: side of a patch in pixels.
        width: d.
        layers: number of blocks.
        heads: attention heads.
        output_dim: E.
        quick_gelu: QuickGELU when true, GELU when false.
        mlp_width: hidden width of the perceptrons; 4 d when None.
    """

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        quick_gelu: bool = True,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.patch_size = patch_size
        self.width = width
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        patches = (input_resolution // patch_size) ** 2
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + patches, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, quick_gelu, mlp_width)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def set_training_options(self, drop_path: float = 0.0, checkpoint: bool = False) -> None:
        """Options of training, none of which changes an evaluation.

        Args:
            drop_path: rate of stochastic depth of the last block; it grows linearly from 0 in the first.
            checkpoint: compute blocks again in the backward pass instead of keeping their activations.

        Raises:
            ValueError: a rate outside [0, 1).
        """
        set_drop_path(self.transformer.resblocks, drop_path)
        self.transformer.checkpoint = checkpoint

    @property
    def blocks(self) -> nn.Sequential:
        """The residual blocks, first to last."""
        return self.transformer.resblocks

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.transformer.heads

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations: that of the patch embedding."""
        return self.conv1.weight.dtype

    @property
    def positions(self) -> nn.Parameter:
        """(1 + P, d), the learned positions :meth:`embed` has added, row 0 the class token's."""
        return self.positional_embedding

    def embed(self, image: Tensor) -> Tensor:
        """Class token and patches with their positions; the convolution runs once, whatever follows.

        Args:
            image: (B, 3, input_resolution, input_resolution), normalised by the model's preprocessing.

        Returns:
            (B, 1 + P, d), row 0 the class token.

        Raises:
            ValueError: another image size or number of channels.
        """
        check_image(image, self.input_resolution)
        x = self.conv1(image.to(self.conv1.weight.dtype))  # (B, d, side, side)
        x = x.flatten(2).transpose(1, 2)  # (B, P, d)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)

    def encode(self, tokens: Tensor, prompts: Prompts | None = None, keep: Tensor | None = None) -> Encoded:
        """Appends the prompts, normalises, runs the blocks and projects.

        Args:
            tokens: (rows, L, d) from :meth:`embed`, class token first; patches may be left out and rows repeated.
            prompts: n vectors appended after the last token (positions L..L+n-1, without positional embedding, before
                ``ln_pre``); deeper layers overwrite them at the input of their block. ``slots`` must be None. Where the
                first layers are None, the vectors are appended at the first block that has some.
            keep: numbers of the patches in `tokens`, where some were left out. Not needed here, because the tokens
                carry their positions; every tower takes it, because others do need it.

        Returns:
            pooled (rows, E) from the class token, tokens (rows, L + n, E).

        Raises:
            ValueError: prompts of another shape, deeper than the tower, or with slots.
        """
        if tokens.dim() != 3 or tokens.shape[-1] != self.width:
            raise ValueError(f"image tokens have shape {tuple(tokens.shape)}; expected (rows, L, {self.width})")
        x, prompts = append_prompts(tokens, prompts, self.transformer.layers, late=True)
        x = self.transformer(self.ln_pre(x), prompts=prompts)
        x = self.ln_post(x)
        proj = self.proj.to(x.dtype)
        # The class token is projected on its own: plain CLIP to the last bit, and no backward through unused tokens.
        return Encoded(x[:, 0] @ proj, x @ proj)

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Encoded:
        """image: (B, 3, side, side). Returns ``encode(embed(image), prompts)``."""
        return self.encode(self.embed(image), prompts)


class CLIP(nn.Module):
    """Image and text tower with a common embedding space (Radford et al. 2021).

    Args:
        embed_dim: E.
        image_resolution: side of the image in pixels.
        vision_layers: blocks of a ViT, or the four stage depths of a ModifiedResNet.
        vision_width: d of the ViT, or channels of the ResNet's first stage.
        vision_patch_size: side of a patch in pixels; None for a ResNet.
        context_length: most text positions.
        vocab_size: entries of the token table.
        transformer_width: d of the text tower.
        transformer_heads: heads of the text tower.
        transformer_layers: blocks of the text tower.
        quick_gelu: QuickGELU (OpenAI) when true, GELU when false.
        vision_heads: heads of the ViT, or of the ResNet's attention pool; ``width // 64`` when None.
        vision_mlp_width: hidden width of the ViT's perceptrons; 4 d when None (8 d / 3 for an EVA-style tower).
        transformer_mlp_width: hidden width of the text tower's perceptrons; 4 d when None.
        rope_grid: None for OpenAI's towers; a number makes the image tower an :class:`clip.eva.EvaVisionTransformer`
            and is its `rope_grid`.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | tuple[int, int, int, int],
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        quick_gelu: bool = True,
        vision_heads: int | None = None,
        vision_mlp_width: int | None = None,
        transformer_mlp_width: int | None = None,
        rope_grid: int | None = None,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.words = Words(context_length, vocab_size)
        self.quick_gelu = quick_gelu
        self.visual: VisionTransformer | EvaVisionTransformer | ModifiedResNet
        if isinstance(vision_layers, int):
            if vision_patch_size is None:
                raise ValueError("a vision transformer needs vision_patch_size; got None")
            heads = max(1, vision_width // HEAD_WIDTH) if vision_heads is None else vision_heads
            numbers = (image_resolution, vision_patch_size, vision_width, vision_layers, heads)
            if rope_grid is None:
                self.visual = VisionTransformer(*numbers, embed_dim, quick_gelu, vision_mlp_width)
            else:
                hidden = vision_width * 8 // 3 if vision_mlp_width is None else vision_mlp_width
                self.visual = EvaVisionTransformer(*numbers, hidden, embed_dim, rope_grid)
        else:
            heads = max(1, vision_width * 32 // HEAD_WIDTH) if vision_heads is None else vision_heads
            self.visual = ModifiedResNet(tuple(vision_layers), embed_dim, heads, image_resolution, vision_width)
        self.transformer = Transformer(
            transformer_width, transformer_layers, transformer_heads, quick_gelu, transformer_mlp_width
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.plans: Remembered[TextPlan] = Remembered()
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draws the weights OpenAI's way; the ViT keeps the draws of its constructor."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.visual, ModifiedResNet):
            self.visual.initialize_parameters()
        width = self.transformer.width
        branch = width**-0.5 * (2 * self.transformer.layers) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            assert block.attn.in_proj_weight is not None
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations: that of the first convolution."""
        return self.visual.dtype

    def encode_image(self, image: Tensor, prompts: Prompts | None = None) -> Encoded:
        """Encodes images.

        Args:
            image: (B, 3, side, side), normalised by the model's preprocessing.
            prompts: vision prompts, appended to the patches.

        Returns:
            pooled (B, E), tokens (B, 1 + P + n, E), not normalised.

        Raises:
            ValueError: image or prompts do not fit the tower; a ResNet takes no prompts.
        """
        return self.visual(image, prompts)

    def encode_text(
        self,
        ids: Tensor,
        prompts: Prompts | None = None,
        labels: Prompts | None = None,
        chunks: Chunks | Callable[[Layout], Chunks | None] | None = None,
        tokens: bool = True,
    ) -> Encoded:
        """Encodes token ids; what sentences have in common at their beginning is computed once (`clip.text_layout`).

        The text tower is causal, so nothing after an end-of-text token reaches it: cutting is exact.

        Args:
            ids: (rows, L) from ``clip.tokenize``; the end-of-text token is the largest id of a row. Ids at the slots
                of prompts are placeholders: their embeddings are overwritten.
            prompts: ``layers[0]`` overwrites the token embeddings at ``slots`` before positions are added, deeper
                layers overwrite the same slots at the input of their block, without positions.
            labels: one layer that overwrites token embeddings at the class name's slots, after the prompts. Slots
                behind a row's end-of-text token have no effect: the filling of names that are shorter than others.
            chunks: sentences computed at a time, the same result with less memory; or what says it for a layout.
            tokens: false leaves the features of the positions out.

        Returns:
            pooled (rows, E) from the end-of-text token, tokens (rows, Lcut, E), Lcut = the batch's longest
            end-of-text position + 1, or (rows, 0, E). What a shorter row holds after its end-of-text token has no
            meaning.

        Raises:
            ValueError: ids beyond the vocabulary, text longer than the context, or prompts that do not fit.
        """
        if ids.dim() != 2 or ids.is_floating_point() or 0 in ids.shape:
            raise ValueError(f"ids of shape {tuple(ids.shape)} and type {ids.dtype}; expected integers (rows, L)")
        rows, kinds, slots, label_slots, vectors, words = len(ids), 0, None, None, None, None
        if prompts is not None:
            vectors = check_prompts(prompts, rows, self.transformer.width, self.transformer.layers, "text prompts")
            kinds = next((len(layer) for layer in prompts.layers if layer is not None and layer.dim() == 3), 0)
            slots = prompts.slots
        if labels is not None:
            words = check_prompts(labels, rows, self.transformer.width, 1, "label tokens")
            label_slots = labels.slots
        device = self.token_embedding.weight.device
        inputs = PlanInputs(device, vectors, words, kinds, tokens, draws(self.transformer), bool(whole.get()))
        given = ids, slots, None if prompts is None else prompts.prompt_index, label_slots
        plan = self.plans(lambda: make_plan(self._cut, *given, inputs), given, inputs)
        prompts = None if prompts is None else prompts._replace(slots=plan.slots)
        labels = None if labels is None else labels._replace(slots=plan.label_slots)
        ids = ids.to(device, non_blocking=True)[:, : plan.length]
        return self._encode_plan(plan, ids, prompts, labels, chunks(plan.layout) if callable(chunks) else chunks)

    def _encode_plan(
        self, plan: TextPlan, ids: Tensor, prompts: Prompts | None, labels: Prompts | None, chunks: Chunks | None
    ) -> Encoded:
        """Sentences of token ids (rows, Lcut), computed as `plan` says; see :meth:`encode_text`."""
        kv_cache: list[KeyValue] = []
        shared = []
        tokens = plan.places is not None
        if plan.layout.prefix:
            first = None if prompts is None else prompts.rows(plan.leaders)
            x = self._embed(ids[plan.leaders, : plan.layout.prefix], first, None)
            x = self.transformer(x, causal_mask(0, x), first, new_kv=kv_cache)
            if tokens:
                shared = [self._project(x).flatten(0, 1)]

        def encode(rows: Tensor, prefix: int, end: int) -> tuple[Tensor, Tensor]:
            own = None if prompts is None or prefix else prompts.rows(rows)
            label = None if labels is None else labels.rows(rows)
            x = ids[rows] if labels is not None else ids[rows, : end + 1]  # label slots may lie behind the end
            x = self._embed(x, own, label)[:, prefix : end + 1]
            leader = plan.leader[rows]
            before = [KeyValue(*(side[:, :, :prefix].index_select(0, leader) for side in block)) for block in kv_cache]
            x = self.transformer(x, causal_mask(prefix, x), own, before if prefix else None)
            pooled = self._project(x[torch.arange(len(x), device=x.device), plan.stop[rows] - prefix])
            return pooled, self._project(x).flatten(0, 1) if tokens else pooled[:0]

        calls = [
            (chunk, bucket.prefix, bucket.end)
            for bucket, rows in zip(plan.layout.buckets, plan.rows)
            for chunk in split_rows(rows, chunks)
        ]
        found = in_chunks(encode, calls, chunks)
        pooled = torch.cat([one for one, _ in found]).index_select(0, plan.order)
        if plan.places is None:
            return Encoded(pooled, pooled.new_empty(len(pooled), 0, pooled.shape[-1]))
        flat = torch.cat([*shared, *(x for _, x in found), pooled.new_zeros(1, pooled.shape[-1])])
        return Encoded(pooled, flat.index_select(0, plan.places.flatten()).view(*plan.places.shape, -1))

    def _embed(self, ids: Tensor, prompts: Prompts | None, labels: Prompts | None) -> Tensor:
        """Input (rows, L, d) of the first block."""
        x = self.token_embedding(ids).to(self.dtype)
        for values in (prompts, labels):
            if values is not None and values.slots is not None:
                x = overwrite(x, values.slots, values.first)
        return x + self.positional_embedding[: ids.shape[1]].to(x.dtype)

    def _project(self, x: Tensor) -> Tensor:
        """Norm and projection of (..., d): (..., E)."""
        x = self.ln_final(x)
        return x @ self.text_projection.to(x.dtype)

    def _cut(self, ids: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Ids up to the longest end-of-text position, that position per row (rows,), and the same as numbers."""
        largest, stop = ids.max(dim=-1)
        high, low, *ends = torch.cat([largest.max()[None], ids.min()[None], stop]).tolist()
        length = max(ends) + 1
        if high >= self.vocab_size or low < 0:
            raise ValueError(
                f"token ids span {low}..{high}, but this model's vocabulary has {self.vocab_size} entries: "
                f"use clip.tokenize(texts, vocab_size={self.vocab_size})"
            )
        if length > self.context_length:
            raise ValueError(f"a text has {length} tokens; this model reads at most {self.context_length}")
        return ids[:, :length], stop, ends

    def add_adapters(
        self,
        factory: Callable[[nn.Module, Place], nn.Module],
        towers: Iterable[str] = TOWERS,
        blocks: Blocks = "all",
        parts: Iterable[str] = ("q", "k", "v"),
    ) -> nn.ModuleDict:
        """Puts adapters into the blocks; see :func:`clip.adapters.add_adapters`."""
        return add_adapters(self, factory, towers, blocks, parts)

    def without_adapters(self) -> AbstractContextManager[None]:
        """Context in which the model is as it was before its adapters."""
        return without_adapters(self)

    def merge_adapters(self) -> None:
        """Makes the changes of all adapters to the weights themselves, for an export; none is left."""
        merge_adapters(self)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities times exp(logit_scale).

        Args:
            image: (B, 3, side, side).
            text: (rows, L) token ids.

        Returns:
            logits_per_image (B, rows) and its transpose.
        """
        image_features = F.normalize(self.encode_image(image).pooled, dim=-1)
        text_features = F.normalize(self.encode_text(text).pooled, dim=-1)
        logits = self.logit_scale.exp().to(image_features.dtype) * image_features @ text_features.t()
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16, kept: Iterable[nn.Parameter] = ()) -> None:
    """Casts the weights of matrix products in place; normalisation, embeddings, positions and logit scale stay fp32.

    Args:
        model: a CLIP or a part of it, with adapters or parametrisations of its layers, which are cast too.
        dtype: half precision type, or ``torch.float32`` to go back.
        kept: parameters, known by identity, that stay as they are: what learns.
    """
    stay = {id(parameter) for parameter in kept}
    for module in model.modules():
        cast: list[Any] = list(module.parameters()) if isinstance(module, (nn.Conv2d, nn.Linear)) else []
        cast += [getattr(module, name, None) for name in ("in_proj_weight", "in_proj_bias", "proj", "text_projection")]
        for parameter in cast:
            if isinstance(parameter, nn.Parameter) and id(parameter) not in stay:
                parameter.data = parameter.data.to(dtype)
