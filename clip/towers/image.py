"""Image towers of open_clip, timm and transformers that give features of all patches and take deep prompts.

A tower differs in how it embeds, in what its blocks are called with and in how it pools: by a class token, the average
of the patches, or attention. The pooled feature is pooled by the tower's own code from the image's own tokens; prompts
reach it through attention alone. The local feature of a token is what the same code makes of that token alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clip.archive import CheckpointError
from clip.layers import append_prompts, check_image, run_blocks
from clip.prompts import Encoded, Prompts


class ImageTower(nn.Module):
    """Base of the towers with tokens.

    Args:
        tower: the module.
        blocks: name of its blocks in the module.
        sizes: (side of the image in pixels, side of a patch, width d, E).
        prefix: tokens before the patches: the class token and registers.
    """

    has_tokens = True

    def __init__(self, tower: Any, blocks: str, sizes: tuple[int, int, int, int], prefix: int) -> None:
        super().__init__()
        self.tower, self.prefix, self._blocks = tower, prefix, blocks
        self.input_resolution, self.patch_size, self.width, self.output_dim = sizes

    @property
    def blocks(self) -> Any:
        """The blocks, first to last."""
        return self.tower.get_submodule(self._blocks)

    @property
    def kind(self) -> str:
        """Name of the network."""
        return type(self.tower).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first weights."""
        return next(self.tower.parameters()).dtype

    def embed(self, image: Tensor) -> Tensor:
        """Tokens with their positions, before everything that follows the prompts.

        Args:
            image: (B, 3, input_resolution, input_resolution), normalised by the model's preprocessing.

        Returns:
            (B, prefix + P, d).

        Raises:
            ValueError: another image size or number of channels.
        """
        check_image(image, self.input_resolution)
        return self.tokens_of(image)

    def encode(self, tokens: Tensor, prompts: Prompts | None = None, keep: Tensor | None = None) -> Encoded:
        """Appends the prompts, runs the blocks, pools and projects.

        Args:
            tokens: (rows, prefix + P, d) from :meth:`embed`; rows may be repeated.
            prompts: n vectors appended after the last token, without position; deeper layers overwrite them at the
                input of their block. ``slots`` must be None.
            keep: must be None: patches cannot be left out.

        Returns:
            pooled (rows, E); tokens (rows, 1 + P + n, E): the pooled feature, then local features of patches and
            prompts.

        Raises:
            ValueError: prompts of another shape, deeper than the tower, or with slots; patches left out.
        """
        length = tokens.shape[1]
        if keep is not None:
            raise ValueError(f"the image tower, {self.kind}, takes all patches: leave `keep` out")
        x, prompts = append_prompts(tokens, prompts, len(self.blocks))
        x = run_blocks(self.blocks, self.before(x), self.extra(x, length), prompts)
        x = self.after(x)
        pooled = self.pool(x[:, :length])
        local = self.local(x[:, self.prefix :])
        return Encoded(pooled, torch.cat([pooled[:, None], local], dim=1))

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Encoded:
        """image: (B, 3, side, side). Returns ``encode(embed(image), prompts)``."""
        return self.encode(self.embed(image), prompts)

    def tokens_of(self, image: Tensor) -> Tensor:
        """(B, prefix + P, d) of checked images."""
        raise NotImplementedError

    def before(self, x: Tensor) -> Tensor:
        """Normalisation before the first block, of (rows, L, d)."""
        return x

    def extra(self, x: Tensor, length: int) -> tuple[Any, ...]:
        """Further arguments of the blocks for x (rows, L, d), of which the first `length` are not prompts."""
        return ()

    def after(self, x: Tensor) -> Tensor:
        """Normalisation behind the last block, of (rows, L, d)."""
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Projected feature (rows, E) of the tokens (rows, prefix + P, d) behind :meth:`after`."""
        raise NotImplementedError

    def local(self, x: Tensor) -> Tensor:
        """Projected features (rows, L, E) of tokens (rows, L, d), each pooled as if it were all there is."""
        alone = x.flatten(0, 1)[:, None].expand(-1, self.prefix + 1, -1)
        return self.pool(alone).unflatten(0, x.shape[:2])


class OpenClipViT(ImageTower):
    """open_clip's own vision transformer (CLIPA, CoCa and variants of CLIP)."""

    def __init__(self, tower: Any) -> None:
        side, patch = _square(tower.image_size), _square(tower.patch_size)
        if tower.attn_pool is not None and tower.attn_pool_contrastive is not None:
            raise CheckpointError(f"attentional_pool is {tower.attn_pool_type!r}, expected true or false")
        sizes = (side, patch, tower.transformer.width, tower.output_dim)
        super().__init__(tower, "transformer.resblocks", sizes, prefix=1)

    def tokens_of(self, image: Tensor) -> Tensor:
        tower = self.tower
        x = tower.conv1(image.to(self.dtype)).flatten(2).transpose(1, 2)
        first = tower.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([first, x], dim=1) + tower.positional_embedding.to(x.dtype)

    def before(self, x: Tensor) -> Tensor:
        return self.tower.ln_pre(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.tower._pool(x)[0] @ self.tower.proj.to(x.dtype)

    def local(self, x: Tensor) -> Tensor:
        pooler = self.tower.attn_pool
        if pooler is None:
            return super().local(x)
        keys = pooler.ln_k(x.flatten(0, 1)[:, None])  # a query that sees one token gets its value, whatever it asks
        query = pooler.ln_q(pooler.query[:1]).expand(len(keys), 1, -1)
        value = self.tower.ln_post(pooler.attn(query, keys, keys, need_weights=False)[0][:, 0])
        return (value @ self.tower.proj.to(value.dtype)).unflatten(0, x.shape[:2])


class TimmViT(ImageTower):
    """timm's VisionTransformer (SigLIP, MobileCLIP-B, ViTamin) and Eva (EVA02-CLIP, PE-Core) in open_clip's wrapper."""

    def __init__(self, tower: Any, side: int, output_dim: int) -> None:
        trunk = tower.trunk
        rope = getattr(trunk, "rope", None)
        if getattr(trunk, "rope_mixed", False):
            raise CheckpointError("its rotary positions differ from block to block, which prompts cannot follow")
        patch = side // trunk.patch_embed.grid_size[0]
        super().__init__(tower, "trunk.blocks", (side, patch, trunk.embed_dim, output_dim), trunk.num_prefix_tokens)
        self.rotary = rope is not None

    @property
    def kind(self) -> str:
        return type(self.tower.trunk).__name__

    def tokens_of(self, image: Tensor) -> Tensor:
        trunk = self.tower.trunk
        x = trunk._pos_embed(trunk.patch_embed(image.to(self.dtype)))
        return x[0] if isinstance(x, tuple) else x

    def before(self, x: Tensor) -> Tensor:
        return self.tower.trunk.norm_pre(x)

    def extra(self, x: Tensor, length: int) -> tuple[Any, ...]:
        if not self.rotary:
            return ()
        trunk = self.tower.trunk
        known = hasattr(trunk.rope, "feat_shape")
        turn = trunk.rope.get_embed() if known else trunk.rope.get_embed(shape=trunk.patch_embed.grid_size)
        sine, cosine = turn.chunk(2, dim=-1)  # (P, head width) each
        still = sine.new_zeros(x.shape[1] - length, sine.shape[-1])  # prompts do not turn
        return (torch.cat([torch.cat([sine, still]), torch.cat([cosine, still + 1])], dim=-1),)

    def after(self, x: Tensor) -> Tensor:
        return self.tower.trunk.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.tower.head(self.tower.trunk.forward_head(x))


class SiglipViT(ImageTower):
    """transformers' image tower of SigLIP, and of SigLIP 2 with square images of its native number of patches."""

    def __init__(self, tower: Any) -> None:
        config = tower.config
        side = getattr(config, "image_size", None)
        if side is None:  # SigLIP 2 takes patches of images of any shape
            side = config.patch_size * math.isqrt(config.num_patches)
        sizes = (side, config.patch_size, config.hidden_size, config.hidden_size)
        super().__init__(tower, "encoder.layers", sizes, prefix=0)
        self.of_patches = isinstance(tower.embeddings.patch_embedding, nn.Linear)

    def tokens_of(self, image: Tensor) -> Tensor:
        if not self.of_patches:
            return self.tower.embeddings(image)
        size, count = self.patch_size, self.input_resolution // self.patch_size
        patches = image.unflatten(3, (count, size)).unflatten(2, (count, size))  # (B, 3, rows, size, columns, size)
        shapes = torch.full((image.shape[0], 2), count, device=image.device)
        return self.tower.embeddings(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), shapes)

    def extra(self, x: Tensor, length: int) -> tuple[Any, ...]:
        return (None,)  # no attention mask

    def after(self, x: Tensor) -> Tensor:
        return self.tower.post_layernorm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.tower.head(x)


class PooledTower(nn.Module):
    """A tower of which only the pooled feature is known, such as ConvNeXt, FastViT or a ResNet: it has no tokens.

    Args:
        tower: the module, images -> (B, E).
        side: of the image in pixels.
        output_dim: E.
    """

    has_tokens = False

    def __init__(self, tower: Any, side: int, output_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.input_resolution, self.width, self.output_dim = side, output_dim, output_dim

    @property
    def kind(self) -> str:
        """Name of the network."""
        return f"{type(getattr(self.tower, 'trunk', self.tower)).__name__} without tokens"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first weights."""
        return next(self.tower.parameters()).dtype

    def embed(self, image: Tensor) -> Tensor:
        """image: (B, 3, side, side). Returns its feature (B, 1, E)."""
        check_image(image, self.input_resolution)
        return self.tower(image.to(self.dtype))[:, None]

    def encode(self, tokens: Tensor, prompts: Prompts | None = None, keep: Tensor | None = None) -> Encoded:
        """tokens: from :meth:`embed`. Returns the feature; ValueError for prompts, which need tokens."""
        if prompts is not None or keep is not None:
            raise ValueError(f"visual prompts need a vision transformer, but the image tower is a {self.kind}")
        return Encoded(tokens[:, 0], tokens)

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Encoded:
        """image: (B, 3, side, side). Returns ``encode(embed(image), prompts)``."""
        return self.encode(self.embed(image), prompts)


def open_clip_tower(tower: Any, output_dim: int) -> ImageTower | PooledTower:
    """The wrapper of an image tower that open_clip built.

    Raises:
        CheckpointError: images that are not square, or a part that prompts cannot follow.
    """
    import open_clip
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(tower, open_clip.transformer.VisionTransformer):
        return OpenClipViT(tower)
    side = _square(tower.image_size)
    if isinstance(getattr(tower, "trunk", None), (VisionTransformer, Eva)):
        return TimmViT(tower, side, output_dim)
    return PooledTower(tower, side, output_dim)


def _square(size: Any) -> int:
    sides = set(size) if isinstance(size, (tuple, list)) else {size}
    if len(sides) != 1:
        raise CheckpointError(f"it takes images of {tuple(size)} pixels, expected square ones")
    return int(sides.pop())
