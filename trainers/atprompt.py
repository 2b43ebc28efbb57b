"""ATPrompt: context around the words of attributes that all classes share (Li et al., ICCV 2025, the CoOp form)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, Prompts
from trainers.base import PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import count, precision
from trainers.parts.prompts import Learner, random_prompt, readable

RELEASED = {
    "ImageNet": ("color", "shape"),
    "Caltech101": ("shape", "size"),
    "OxfordPets": ("playfulness", "energy"),
    "StanfordCars": ("luxury",),
    "OxfordFlowers": ("color", "habitat", "growth"),
    "Food101": ("flavor", "preparation"),
    "FGVCAircraft": ("design", "range"),
    "SUN397": ("function",),
    "DescribableTextures": ("pattern", "color", "design"),
    "EuroSAT": ("habitat",),
    "UCF101": ("precision",),
}
"""Attributes that a language model named and the authors' search chose, by data set."""


class AttributeContext(Learner):
    """Sentences `[a_1] WORDS_1 [a_2] WORDS_2 ... [v] NAME.` with learned a_i (m, d) and v (n, d).

    Args:
        model: the frozen CLIP.
        classnames: C names.
        words: one text for each attribute.
        n_att, n_ctx: m and n.
    """

    ids: Tensor
    slots: Tensor

    def __init__(self, model: CLIP, classnames: Sequence[str], words: Sequence[str], n_att: int, n_ctx: int):
        super().__init__()
        width, first = model.transformer.width, model.words.first
        slots: list[int] = []
        fixed: list[tuple[int, int]] = []  # positions and tokens of the attributes
        end = first
        for one in words:
            slots += range(end, end + n_att)
            end += n_att
            tokens = model.words.ids(one, inside=True)
            fixed += zip(range(end, end + len(tokens)), tokens)
            end += len(tokens)
        slots += range(end, end + n_ctx)
        ids = model.words.tokenize([f"{readable(name)}." for name in classnames], room=end + n_ctx - first)
        for place, token in fixed:
            ids[:, place] = token
        self.attributes = nn.ParameterList(random_prompt(n_att, width, scale=0.5) for _ in words)  # N(0, 0.01²)
        self.ctx = random_prompt(n_ctx, width)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("slots", torch.tensor(slots), persistent=False)
        self.register_buffer("name_start", torch.full((len(ids),), end + n_ctx), persistent=False)

    def text_prompts(self) -> tuple[Tensor, Prompts]:
        return self.ids, Prompts((torch.cat([*self.attributes, self.ctx]),), self.slots)


def attributes_of(dataset: str, words: Sequence[str], path: str) -> list[str]:
    """The words given; those of a JSON file {data set: [word, ...]}; the released ones; color and shape.

    Raises:
        ValueError: the file is no such JSON or has no words for the data set, or a text is empty.
    """
    if path and not words:
        try:
            known = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
            words = known[dataset]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as err:
            raise ValueError(f"{path} has no attributes of {dataset}, expected {{data set: [word, ...]}}") from err
    words = words or RELEASED.get(dataset, ("color", "shape"))
    if isinstance(words, str) or not all(isinstance(one, str) and one.strip() for one in words):
        raise ValueError(f"the attributes of {dataset} are {words!r}, expected a list of words")
    return list(words)


@TRAINER_REGISTRY.register()
class ATPrompt(PromptTrainer):
    """Cosine logits of sentences with attributes, cross-entropy; for new classes the attributes stay."""

    node = "ATPROMPT"

    @staticmethod
    def defaults() -> CfgNode:
        options = {
            "N_CTX": count(4, "n, context vectors before the name"),
            "N_ATT": count(4, "m, context vectors before each attribute"),
            "ATTRIBUTES": Option((), "words of the attributes; none: of the file, else those released", kind=str),
            "ATTRIBUTE_FILE": Option("", "JSON file {data set: [word, ...]}, such as a language model's"),
            "PREC": precision(),
        }
        return method_options("ATPROMPT", options)

    def build_learner(self, model, classnames) -> Learner:
        own = self.options
        words = attributes_of(self.cfg.DATASET.NAME, own.ATTRIBUTES, own.ATTRIBUTE_FILE)
        return AttributeContext(model, classnames, words, own.N_ATT, own.N_CTX)
