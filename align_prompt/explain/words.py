"""Words whose embeddings are nearest to what was learned in their place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from align_prompt.model import Model
from trainers.parts.label_tokens import LabelTokens

CHUNK = 256  # vectors compared with the vocabulary at once


class Nearest(NamedTuple):
    """A learned vector and the entries of the vocabulary nearest to it, by Euclidean distance, rising."""

    name: str
    norm: float
    words: tuple[tuple[str, float], ...]


def nearest(table: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers and Euclidean distances (K, count) of the rows of `table` (V, d) nearest to `vectors` (K, d)."""
    parts = [
        torch.cdist(some.float(), table.float(), compute_mode="donot_use_mm_for_euclid_dist").topk(
            min(count, len(table)), dim=1, largest=False
        )
        for some in vectors.split(CHUNK)
    ]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def learned_vectors(model: Model, place: int) -> dict[str, Tensor]:
    """Vectors (d,) at the input of the text tower that were learned, for class number `place`; {} if there are none."""
    learner = model.prompted.learner
    found: dict[str, Tensor] = {}
    fixed = learner.conditional or learner.text_features() is not None
    prompts = None if fixed else learner.text_prompts()[1]
    ctx = getattr(learner, "ctx", None) if learner.conditional else prompts and prompts.layers[0]
    if isinstance(ctx, Tensor):
        modes = learner.text_modes
        if ctx.dim() == 3 and len(ctx) == len(model.classnames) * modes and learner.class_bound:
            ctx = ctx[place * modes : (place + 1) * modes]
        elif ctx.dim() == 3 and len(ctx) == len(model.classnames) and modes == 1:
            ctx = ctx[place, None]
        ctx = ctx.detach().reshape(-1, *ctx.shape[-2:])  # (N, n, d)
        for mode, vectors in enumerate(ctx):
            prefix = f"prompt {mode + 1}, " if len(ctx) > 1 else ""
            found |= {f"{prefix}v{k}": vector for k, vector in enumerate(vectors, start=1)}
    if isinstance(learner, LabelTokens):
        own = learner.tokens_by_class()[place]
        found |= {f"name of {model.classnames[place]}, token {k}": vector for k, vector in enumerate(own, start=1)}
    return found


@torch.no_grad()
def nearest_words(model: Model, place: int, count: int = 5) -> list[Nearest]:
    """Nearest entries of the vocabulary to every learned vector, for class number `place`."""
    vectors = learned_vectors(model, place)
    if not vectors:
        return []
    backbone = model.prompted.clip
    table, words = backbone.token_embedding.weight.detach().cpu(), backbone.words
    stacked = torch.stack([vector.detach().cpu() for vector in vectors.values()])
    numbers, distances = nearest(table, stacked, count)
    return [
        Nearest(name, float(vector.float().norm()), tuple(zip(map(words.decode, row), distance)))
        for name, vector, row, distance in zip(vectors, stacked, numbers.tolist(), distances.tolist())
    ]


@torch.no_grad()
def label_tokens_in_two_dimensions(model: Model) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Label tokens before and after, (K, 2) on their principal components, and the class of each; None without any."""
    learner = model.prompted.learner
    if not isinstance(learner, LabelTokens) or len(learner.vectors) < 2:
        return None
    both = torch.stack([learner.start, learner.vectors]).detach().float().cpu()  # (2, K, d)
    flat = both.flatten(0, 1)
    _, _, basis = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    before, after = ((both - flat.mean(dim=0)) @ basis[:2].T).numpy()
    return before, after, [model.classnames[int(c)] for c in learner.label]
