"""Learners of several modes: N prompts of the text tower and M of the image tower, each a prompt of its own.

Axes: C classes, L tokens, n text context length, m visual prompt length, d width, M/N visual/textual modes, J depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, Prompts
from clip.text_plan import Remembered
from trainers.parts import engine
from trainers.parts.prompts import (
    Learner,
    Sentences,
    TextSize,
    build_sentences,
    check_tower_prompts,
    init_context,
    phrase_tokens,
    random_prompt,
    readable,
    round_to_fp16,
    vision_blocks,
    visual_prompts,
    word_tokens,
)

_modes: Remembered[Tensor] = Remembered()


def modes_of_rows(ids: Tensor, modes: int) -> Tensor:
    """(C * N,) mode of every sentence of class-major `ids` (C * N, L)."""
    return _modes(lambda: torch.arange(len(ids), device=ids.device) % modes, (ids,), modes)


def mode_similarity(features: Tensor) -> Tensor:
    """Mean cosine between two different modes, a scalar in [-1, 1]; 1 where there is only one.

    Args:
        features: (B, M, E), the M modes of every image or class.
    """
    modes = features.shape[1]
    total = nn.functional.normalize(features.detach().float(), dim=-1).sum(dim=1).square().sum(dim=-1)  # (B,)
    return (total.mean() - modes) / (modes * (modes - 1)) if modes > 1 else total.mean()


def mode_phrases(init: str | Sequence[str], modes: int) -> list[str]:
    """Phrases that start the textual modes, one per mode; empty = random.

    Args:
        init: one phrase, which starts mode 0 alone, or a phrase for every mode.
        modes: N.

    Raises:
        ValueError: a list of another length, or of something else than texts.
    """
    if isinstance(init, str):
        return [init] + [""] * (modes - 1)
    if len(init) != modes or not all(isinstance(phrase, str) for phrase in init):
        raise ValueError(
            f"CTX_INIT is a list of {len(init)}, {list(init)!r}, but there are {modes} textual prompts: give a text "
            f"for each ('' = random), or one text, which starts the first"
        )
    return list(init)


def words_after(model: TextSize, phrase: str, n_ctx: int) -> str:
    """Words of `phrase` beyond its first n_ctx tokens.

    Raises:
        ValueError: the phrase has fewer tokens, or n_ctx ends inside a word.
    """
    words = readable(phrase).split()
    ends = [len(word_tokens(model, " ".join(words[: k + 1]))) for k in range(len(words))]
    if words and n_ctx not in ends:
        phrase_tokens(model, phrase, n_ctx)  # says that the phrase is too short
        raise ValueError(f"N_CTX {n_ctx} cuts through a word of CTX_INIT {phrase!r}: use one of {ends}")
    return " ".join(words[ends.index(n_ctx) + 1 :]) if words else ""


def mode_sentences(
    model: CLIP,
    classnames: Sequence[str],
    n_ctx: int,
    phrases: Sequence[str],
    keep_rest: bool = True,
    position: str = "end",
) -> Sentences:
    """Sentences of all classes in N modes, (C, N, ...): behind the n_ctx slots of a mode stands the rest of its phrase.

    Args:
        phrases: N phrases; empty = slots alone.
        keep_rest: words of a phrase beyond n_ctx stay, frozen; otherwise they are dropped.
        position: place of the class name, see `build_sentences`.
    """
    rests = [words_after(model, phrase, n_ctx) for phrase in phrases]
    rests = rests if keep_rest else [""] * len(phrases)
    made = {rest: build_sentences(model, classnames, n_ctx, rest=rest, position=position) for rest in set(rests)}
    return Sentences(*(torch.stack(parts, dim=1) for parts in zip(*(made[rest] for rest in rests))))


@torch.no_grad()
def start_with_phrases(model: CLIP, ctx: Tensor, phrases: Sequence[str]) -> None:
    """Write the embeddings of N phrases into contexts (..., N, n, d); modes without a phrase stay as they are."""
    for mode, phrase in enumerate(phrases):
        if phrase:
            ctx[..., mode, :, :] = init_context(model, phrase, ctx.shape[-2])


class ModeContext(Learner):
    """N learned contexts of n vectors, each in separate sentences for all classes (PLOT, Section 3.2).

    Args:
        ids: (C, N, L) sentences.
        slots: (C, N, n) positions of the context vectors.
        ctx: (N, n, d) at the start, or (C, N, n, d) for contexts of each class.
        learned: false keeps the contexts as they are; a checkpoint holds them all the same.
    """

    ids: Tensor
    slots: Tensor
    ctx: Tensor

    def __init__(self, ids: Tensor, slots: Tensor, ctx: Tensor, learned: bool = True):
        super().__init__()
        self.text_modes = ids.shape[1]
        self.class_bound = ctx.dim() == 4
        if learned:
            self.ctx = nn.Parameter(ctx)
        else:
            self.register_buffer("ctx", ctx)
        self.register_buffer("ids", ids.flatten(0, 1), persistent=False)  # (C * N, L)
        self.register_buffer("slots", slots.flatten(0, 1).contiguous(), persistent=False)  # processes write into it

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        if self.class_bound:
            return self.ids, Prompts((self.ctx.flatten(0, 1),), self.slots)  # (C * N, n, d)
        return self.ids, Prompts((self.ctx,), self.slots, modes_of_rows(self.ids, self.text_modes))


class MultiModeLearner(Learner):
    """N textual and M visual prompts with deep layers, coupled or independent (MaPLe, IVLP, ALIGN).

    Every mode is a separate prompt: textual mode n has n_ctx context vectors at each of the first J blocks,
    visual mode m as many visual prompt vectors. Coupled (MaPLe, Eq. 6; ALIGN, Section 3): visual prompts are linear
    maps of the textual prompts of the same mode and layer, so M = N. Independent: visual prompts are free parameters,
    each with its length and depth.

    Args:
        model: the frozen CLIP; its visual tower must be a vision transformer if it gets prompts.
        classnames: C class names.
        n_ctx: prompt length, of both towers unless `vision_n_ctx` is given.
        depth: number J of layers with prompts, 1 = input only; at most the number of blocks of either tower.
        text_modes, vision_modes: N and M.
        init: phrase that starts mode 0, the other modes are random; or one phrase for each mode. Empty = random.
        keep_rest: words of a phrase beyond n_ctx stay frozen in the sentences of its mode, as in the released code of
            MaPLe and ALIGN (2 vectors and "a photo of a" give `[v1][v2] of a NAME.`); otherwise they are dropped.
        coupled: see above.
        shared_start: the deep projections start as copies of one layer (released code) instead of separate draws.
        vision_n_ctx, vision_depth: length and depth of independent visual prompts; depth 0 = text prompts only.
        half_prompts: deep textual and all visual prompts are rounded through fp16 (released code of IVLP).
        vision_scale: factor on the visual prompts at the start, 0 or more: on both parts of the linear maps, or on the
            free prompts.
        mode_bias: every visual mode and vector of a coupled learner has a bias of its own, from N(0, 0.02^2), in the
            place of the one that all share.

    Raises:
        ValueError: coupled with M != N or with a separate length or depth, a depth that a tower does not have, a list
            of phrases of another length than N, or n_ctx inside a word of a phrase.
    """

    ids: Tensor
    slots: Tensor
    body: Tensor
    end: Tensor

    def __init__(
        self,
        model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        depth: int,
        text_modes: int = 1,
        vision_modes: int = 1,
        init: str | Sequence[str] = "",
        keep_rest: bool = True,
        coupled: bool = True,
        shared_start: bool = False,
        vision_n_ctx: int | None = None,
        vision_depth: int | None = None,
        half_prompts: bool = False,
        vision_scale: float = 1.0,
        mode_bias: bool = False,
    ):
        super().__init__()
        vision_n_ctx = n_ctx if vision_n_ctx is None else vision_n_ctx
        vision_depth = depth if vision_depth is None else vision_depth
        if coupled and (vision_n_ctx, vision_depth) != (n_ctx, depth):
            raise ValueError(
                f"visual prompts of length {vision_n_ctx} and depth {vision_depth} cannot be coupled with textual ones "
                f"of length {n_ctx} and depth {depth}: use the same or independent prompts"
            )
        self._check(model, n_ctx, depth, text_modes, vision_modes, coupled)
        self.text_modes, self.vision_modes, self.coupled = text_modes, vision_modes, coupled
        self.half_prompts = half_prompts
        width = model.token_embedding.weight.shape[1]

        phrases = mode_phrases(init, text_modes)
        sentences = mode_sentences(model, classnames, n_ctx, phrases, keep_rest)
        for name, values in sentences._asdict().items():  # (C, N, ...) -> rows (C * N, ...), class-major
            self.register_buffer(name, values.flatten(0, 1), persistent=False)

        self.ctx = random_prompt(text_modes, n_ctx, width)
        start_with_phrases(model, self.ctx, phrases)
        self.deep = nn.ParameterList([random_prompt(text_modes, n_ctx, width) for _ in range(depth - 1)])
        self.vision = nn.ParameterList()  # free visual prompts, or what is added to the maps of the textual ones
        if coupled:
            self.projections = self._projections(
                width, model.visual.width, depth, shared_start, vision_scale, mode_bias
            )
        if mode_bias or not (coupled or vision_depth == 0):
            self.vision = visual_prompts(model, vision_modes, vision_n_ctx, vision_depth, vision_scale)

    @staticmethod
    def _projections(
        width: int, outputs: int, depth: int, shared: bool, scale: float, mode_bias: bool
    ) -> nn.ModuleList:
        """Maps of the textual prompts of each layer to the visual ones."""
        projections = nn.ModuleList([nn.Linear(width, outputs, bias=not mode_bias) for _ in range(depth)])
        if shared:
            for projection in projections[2:]:
                projection.load_state_dict(projections[1].state_dict())
        for parameter in projections.parameters():
            parameter.data.mul_(scale)
        return projections

    @staticmethod
    def _check(model: CLIP, n_ctx: int, depth: int, text_modes: int, vision_modes: int, coupled: bool) -> None:
        if min(n_ctx, depth, text_modes, vision_modes) < 1:
            raise ValueError(
                f"context length {n_ctx}, depth {depth}, {text_modes} textual and {vision_modes} visual prompts: "
                f"each must be at least 1"
            )
        if coupled and text_modes != vision_modes:
            raise ValueError(
                f"{vision_modes} visual and {text_modes} textual prompts cannot be coupled: a visual prompt is a "
                f"linear map of the textual prompt of the same index. Use equal numbers or COUPLED False"
            )
        blocks = len(model.transformer.resblocks)
        if not coupled:
            check_tower_prompts("text", n_ctx, depth, blocks)
            return
        blocks = min(vision_blocks(model), blocks)
        if depth > blocks:
            raise ValueError(
                f"PROMPT_DEPTH is {depth}, but the shallower tower has {blocks} blocks: expected at most that"
            )

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        layers = (self.ctx, *self.deep)  # (N, n, d)
        if not self.half_prompts:
            return self.ids, Prompts(layers, self.slots, modes_of_rows(self.ids, self.text_modes))
        first, *deep = (layer.repeat(len(self.ids) // self.text_modes, 1, 1) for layer in layers)  # (C * N, n, d)
        return self.ids, Prompts((first, *(round_to_fp16(layer) for layer in deep)), self.slots)

    def vision_prompts(self) -> Prompts | None:
        layers = tuple(self.vision)
        if self.coupled:
            texts = (self.ctx, *self.deep)
            maps = [project(text) for project, text in zip(self.projections, texts)]  # (M, n, d)
            layers = tuple(map(torch.add, maps, layers) if layers else maps)
        return Prompts(layers, None) if layers else None


def independent_prompts(
    model: CLIP, classnames: Sequence[str], options: CfgNode, half_prompts: bool = False
) -> MultiModeLearner:
    """Deep prompts of both towers that share nothing, by the options of a method (IVLP, PromptSRC)."""
    return MultiModeLearner(
        model,
        classnames,
        n_ctx=options.N_CTX_TEXT,
        depth=options.PROMPT_DEPTH_TEXT,
        init=options.CTX_INIT,
        keep_rest=options.KEEP_REST,
        coupled=False,
        vision_n_ctx=options.N_CTX_VISION,
        vision_depth=options.PROMPT_DEPTH_VISION,
        half_prompts=half_prompts,
        vision_scale=options.VISION_SCALE,
    )


def saved_prompts(model: CLIP, classnames: Sequence[str], path: str) -> MultiModeLearner:
    """Learner with the independent prompts that a run of PromptSRC or IVLP has saved, for other classes, too.

    Args:
        model: a CLIP of the run's backbone.
        classnames: C names.
        path: its checkpoint, model.pth.tar-N.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it holds no such prompts, or those of a model of other widths.
    """
    content = engine.read_checkpoint(Path(path))
    weights = content["state_dict"]
    deep, vision = (sum(name.startswith(f"{kind}.") for name in weights) for kind in ("deep", "vision"))
    if "ctx" not in weights or not vision or any(name.startswith("projections.") for name in weights):
        raise ValueError(f'"{path}" holds no independent prompts of both towers: expected those of PromptSRC or IVLP')
    saved = CfgNode.load_cfg(content.get("config") or "{}").get("TRAINER", CfgNode())
    own = saved.get(str(saved.get("NAME", "")).upper(), CfgNode())
    learner = MultiModeLearner(
        model,
        classnames,
        n_ctx=weights["ctx"].shape[-2],
        depth=1 + deep,
        init=own.get("CTX_INIT", ""),
        keep_rest=own.get("KEEP_REST", True),
        coupled=False,
        vision_n_ctx=weights["vision.0"].shape[-2],
        vision_depth=vision,
        half_prompts=own.get("HALF_PROMPTS", False),
    )
    engine.check_weights(Path(path), learner, weights)
    learner.load_state_dict(weights)
    return learner
