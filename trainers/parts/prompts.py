"""Learners: the modules that hold prompt vectors and hand them to the two towers of CLIP.

A learner answers two questions for the prompted forward of `trainers.parts.prompted_clip.PromptedCLIP`:

- `text_prompts()` -> (ids (R, L), Prompts or None): R = C * N sentences, class-major (row c * N + n is mode n of c);
- `vision_prompts()` -> Prompts or None, with M modes: every layer is (M, m, d), or None for plain images.

A conditional learner, whose text depends on the image, answers `conditional_prompts(image)` instead of the first.

Axes: C classes, L tokens, n text context length, m visual prompt length, d width, M/N visual/textual modes, J depth.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from clip import CLIP, Encoded, Prompts
from clip.adapters import kind_of
from clip.record import Record
from clip.words import Words
from trainers.parts.engine import distributed

PROMPT_STD = 0.02
CLASS_POSITIONS = ("end", "middle", "front")


class TextSize(Protocol):
    """The text tower's size, of a CLIP or of `clip.input_of`."""

    @property
    def context_length(self) -> int: ...
    @property
    def words(self) -> Words: ...


class Sentences(NamedTuple):
    """Placeholder sentences of all classes for one prompt.

    ids: (C, L) token ids with a placeholder at every context slot.
    slots: (C, n) positions of the context vectors.
    body: (C, L) bool, true from the first to the last token of context, template words and class name
        (not the start token, the final period, the end token or the padding).
    end: (C,) position of the end-of-text token.
    name_start: (C,) position of the first token of the class name.
    """

    ids: Tensor
    slots: Tensor
    body: Tensor
    end: Tensor
    name_start: Tensor


def readable(name: str) -> str:
    """Class name as it stands in a sentence: data sets write `_` for a space."""
    return name.replace("_", " ")


def word_tokens(model: TextSize, text: str) -> list[int]:
    """Token ids of `text` without start and end token."""
    return model.words.ids(text)


def build_sentences(
    model: CLIP, classnames: Sequence[str], n_ctx: int, rest: str = "", position: str = "end"
) -> Sentences:
    """Sentences `start | n_ctx context slots | rest | name . | end` of all classes.

    Args:
        model: gives vocabulary size and context length.
        classnames: C names; `_` is read as a space.
        n_ctx: number n of context slots.
        rest: frozen template words between the context and the name.
        position: where the name stands, relative to the context: `end`, `middle` (after the first n // 2 context
            vectors) or `front` (CoOp, Section 3.1 and its released code).

    Raises:
        ValueError: unknown position, no slots, or `rest` together with a position other than `end`.
    """
    if position not in CLASS_POSITIONS:
        raise ValueError(f"class token position is {position!r}, expected one of {', '.join(CLASS_POSITIONS)}")
    if n_ctx < 1:
        raise ValueError(f"context length is {n_ctx}, expected at least 1")
    if rest and position != "end":
        raise ValueError(f"template words {rest!r} stay before the class name, so the position must be 'end'")
    names = [readable(name) for name in classnames]
    first = model.words.first
    plain = model.words.tokenize([f"{rest} {name}.".lstrip() for name in names], room=n_ctx)
    end = model.words.ends(plain)
    n_rest = len(model.words.ids(rest, inside=True)) if rest else 0
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context vectors before the name
    ids, slots, body = plain.clone(), [], torch.zeros_like(plain, dtype=torch.bool)
    for c, name in enumerate(names):
        n_name = len(model.words.ids(name, inside=True))
        last = first + n_ctx + n_rest + n_name  # first position after the name
        context, words = plain[c, first : first + n_ctx], plain[c, first + n_ctx : last]
        ids[c, first:last] = torch.cat([context[:before], words, context[before:]])
        slots.append([*range(first, first + before), *range(last - n_ctx + before, last)])
        body[c, first:last] = True
    name_start = torch.full((len(names),), first + before + n_rest)
    return Sentences(ids, torch.tensor(slots), body, end, name_start)


def phrase_tokens(model: TextSize, init: str, n_ctx: int) -> list[int]:
    """Token ids of the phrase `init`.

    Raises:
        ValueError: the phrase has fewer tokens than n_ctx.
    """
    tokens = word_tokens(model, readable(init))
    if len(tokens) < n_ctx:
        raise ValueError(
            f"CTX_INIT {init!r} has {len(tokens)} tokens but N_CTX is {n_ctx}: lower N_CTX, use a longer phrase, "
            f"or leave CTX_INIT empty for random vectors"
        )
    return tokens


def init_context(model: CLIP, init: str, n_ctx: int) -> Tensor:
    """First n_ctx token embeddings of the phrase `init`, (n_ctx, d) in fp32; raises as `phrase_tokens` does."""
    tokens = phrase_tokens(model, init, n_ctx)
    device = model.token_embedding.weight.device
    with torch.no_grad():
        return model.token_embedding(torch.tensor(tokens[:n_ctx], device=device)).float()


def random_prompt(*shape: int, scale: float = 1.0) -> nn.Parameter:
    """Prompt vectors drawn from N(0, (0.02 scale)^2); all methods of this family start with scale 1."""
    return nn.Parameter(torch.randn(*shape) * (scale * PROMPT_STD))


def meta_net(inputs: int, hidden: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    """Bottleneck of two linear layers with bias, `linear1` and `linear2`, that makes prompts from features."""
    layers = {"linear1": nn.Linear(inputs, hidden), "activation": activation, "linear2": nn.Linear(hidden, outputs)}
    return nn.Sequential(OrderedDict(layers))


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        rows, mine = distributed.gather(x), distributed.get_rank() * len(x)
        return super().forward(rows)[mine : mine + len(x)]


def feature_map(inputs: int, outputs: int, normalised: bool = True) -> nn.Sequential:
    """Two linear layers (rows, inputs) -> (rows, outputs); the hidden one goes through batch normalisation, or not."""
    first = nn.Linear(inputs, outputs, bias=not normalised)
    norm = [BatchNorm(outputs)] if normalised else []
    return nn.Sequential(first, *norm, nn.ReLU(), nn.Linear(outputs, outputs))


def round_to_fp16(value: Tensor) -> Tensor:
    """Value and gradient rounded to fp16, of the same type as before; applied to every row before rows are summed.

    Released codes of the MaPLe family inject their fp32 prompts like this even in fp32 runs.
    """
    return value.half().to(value.dtype)


class Learner(nn.Module):
    """Base of all learners: plain sentences and plain images unless a subclass says otherwise.

    `class_bound` says that the learned parameters belong to one class list and cannot move to another;
    `conditional` says that the text depends on the image, so that text features must not be cached; it is then encoded
    `chunk_rows` sentences at a time.
    """

    class_bound = False
    conditional = False
    chunk_rows = 512
    half_prompts = False  # injected prompts go `round_to_fp16`
    reads_inside = False  # `image_features` gets what the image tower computes inside
    inside: tuple[int, ...] = ()  # its blocks whose output is then recorded
    attention_inside: tuple[int, ...] = ()  # its blocks whose attention is
    text_modes = 1
    vision_modes = 1

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        raise NotImplementedError(f"{type(self).__name__} gives no sentences")

    def conditional_prompts(self, image: Tensor) -> tuple[Tensor, Prompts]:
        """Sentences (C, L) of all classes, and the prompts of every image, whose layers are (B, n, d).

        Args:
            image: (B, E) pooled features, not normalised. Slots are (n,) or, by class, (C, n).
        """
        raise NotImplementedError(f"the sentences of {type(self).__name__} do not depend on the image")

    def text_features(self) -> Encoded | None:
        """Features of all classes where they need no forward of the text tower; None: encode `text_prompts()`."""
        return None

    def linear(self) -> tuple[Tensor, Tensor, bool] | None:
        """Weight (C, E) and bias (C,) of a score that is linear in the image feature, and if that is normalised."""
        return None

    def label_tokens(self) -> Prompts | None:
        """Vectors in the place of words of the class names, one layer (R, q, d); None: the words as they are."""
        return None

    def vision_prompts(self) -> Prompts | None:
        return None

    def image_features(self, encoded: Encoded, seen: Record) -> Encoded:
        """Features in the place of `encoded` images, of a learner that `reads_inside`, from what was recorded."""
        return encoded


class FixedText(Learner):
    """Class features (C, E) that were encoded beforehand, such as those of an ensemble of templates."""

    features: Tensor

    def __init__(self, features: Tensor):
        super().__init__()
        self.register_buffer("features", features, persistent=False)

    def text_features(self) -> Encoded | None:
        return Encoded(self.features, self.features[:, None])


class TemplateText(Learner):
    """Sentences from a fixed template; nothing is learned. With `truncate` long ones are cut to the context length."""

    ids: Tensor

    def __init__(self, model: CLIP, classnames: Sequence[str], template: str, truncate: bool = False):
        super().__init__()
        texts = [template.format(readable(name)) for name in classnames]
        ids = model.words.tokenize(texts, truncate)
        self.register_buffer("ids", ids, persistent=False)
        words = word_tokens(model, template.split("{}")[0])
        self.register_buffer("name_start", torch.full((len(ids),), model.words.first + len(words)), persistent=False)

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        return self.ids, None


class TextContext(Learner):
    """Learned context vectors in the sentences of all classes (CoOp, Section 3.1).

    Args:
        model: the frozen CLIP.
        classnames: C class names.
        n_ctx: context length n; replaced by the number of tokens of `init` when that is given.
        init: phrase whose token embeddings start the context; empty for N(0, 0.02^2).
        class_specific: one context per class, (C, n, d), instead of one for all, (n, d).
        position: place of the class name, see `build_sentences`.
    """

    ids: Tensor
    slots: Tensor

    def __init__(
        self,
        model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        init: str = "",
        class_specific: bool = False,
        position: str = "end",
    ):
        super().__init__()
        if init:
            n_ctx = len(word_tokens(model, readable(init)))
        self.class_bound = class_specific
        sentences = build_sentences(model, classnames, n_ctx, position=position)
        width = model.token_embedding.weight.shape[1]
        shape = (len(classnames), n_ctx, width) if class_specific else (n_ctx, width)
        if init:
            self.ctx = nn.Parameter(init_context(model, init, n_ctx).expand(shape).clone())
        else:
            self.ctx = random_prompt(*shape)
        self.register_buffer("ids", sentences.ids, persistent=False)
        self.register_buffer("slots", sentences.slots, persistent=False)
        self.register_buffer("name_start", sentences.name_start, persistent=False)

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        return self.ids, Prompts((self.ctx,), self.slots)


def visual_prompts(model: CLIP, modes: int, n_ctx: int, depth: int, scale: float = 1.0) -> nn.ParameterList:
    """Free visual prompts: `depth` layers of (modes, n_ctx, d), drawn from N(0, (0.02 scale)^2) (VPT, Section 3.2).

    Raises:
        ValueError: no prompt vector, no layer or more than the image tower has, or a tower that takes no prompts.
    """
    check_tower_prompts("visual", n_ctx, depth, vision_blocks(model))
    return nn.ParameterList([random_prompt(modes, n_ctx, model.visual.width, scale=scale) for _ in range(depth)])


def vision_blocks(model: CLIP) -> int:
    """Number of blocks of the image tower.

    Raises:
        ValueError: it is not a vision transformer.
    """
    blocks = getattr(model.visual, "blocks", None)
    if blocks is None:
        raise ValueError(f"visual prompts need a vision transformer, but the image tower is a {kind_of(model.visual)}")
    return len(blocks)


def check_tower_prompts(tower: str, n_ctx: int, depth: int, blocks: int) -> None:
    """Check length and depth of the prompts of one tower.

    Raises:
        ValueError: one of them is below 1, or the tower has fewer blocks.
    """
    if min(n_ctx, depth) < 1:
        raise ValueError(f"{tower} prompts of length {n_ctx} and depth {depth}: each must be at least 1")
    if depth > blocks:
        raise ValueError(f"{tower} prompts of depth {depth} in a tower of {blocks} blocks: expected at most that")
