"""LAMM: trainable label tokens in the place of class names, around the learners of other methods.

Gao et al., "LAMM: Label Alignment for Multi-Modal Prompt Learning", AAAI 2024.

`LAMM` trains the tokens in fixed sentences, `CoOpLAMM`, `MaPLeLAMM` and `ALIGNLAMM` train them together with what CoOp,
MaPLe and ALIGN learn. All four are made by `aligned` from the registered method: its learner, inside `LabelTokens`, its
score, and the hierarchical loss on top.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, Encoded, Prompts
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoints import check_classnames

from .base import Output, PromptTrainer
from .losses import distillation_loss, normalise
from .prompts import PROMPT_STD, Learner, readable, word_tokens

logger = logging.getLogger(__name__)

TOKENS = ("all", "shortest", "one")
PLACES = ("name", "prefix")
TARGETS = ("reference", "trained")
REFERENCES = ("start", "moving")
UNSEEN = ("refuse", "words")

DEFAULTS = {
    # which tokens of a class name are trained: all; of every name as many as the shortest has (released); one
    "TOKENS": "all",
    # name: the tokens stand in the place of the name's; prefix: right behind the context, where MaPLe's left-over words
    # begin, and the whole name stays (what the released MaPLe+LAMM does with q = 1)
    "PLACE": "name",
    "RANDOM_INIT": False,  # start from N(0, 0.02^2) instead of the words
    "HIERARCHICAL": True,  # the three loss terms below
    "W_PARAM": None,  # weight of the parameter term; None = 1 / shots (paper), the released few-shot scripts ran with 1
    "W_FEATURE": 1.0,  # weight of the feature term
    "W_LOGIT": 0.05,  # weight of the logit term
    "TEMPERATURE": 2.0,  # of the logit term
    # which side of the logit term is the soft target: the reference, without gradient (paper), or the trained logits,
    # both sides with gradient (released)
    "LOGIT_TARGET": "reference",
    # text the terms compare with, plain words in each: of the learner as it starts, or as it is now (released)
    "REFERENCE": "start",
    "SKIP_SINGLE_CLASS": False,  # no feature term in batches of one class only (released)
    # classes that were not trained: an error, or their plain words; classes are matched by name
    "UNSEEN": "refuse",
    "LOAD_TOKENS": True,  # False: evaluation starts from the words again (released MaPLe+LAMM)
}


class LabelTokens(Learner):
    """Trainable vectors in the place of the words of class names, around another learner (LAMM, Section 3).

    `vectors` (K, d) holds the tokens of all classes one after the other, `lengths` (C,) how many each class has. All N
    sentences of a class share them.

    Args:
        model: the frozen CLIP.
        inner: learner of the sentences, whose text does not depend on the image.
        classnames: C class names.
        tokens: `all` tokens of each name; of each as many as the `shortest` name has; or `one`.
        place: `name`, or `prefix`: right behind the context.
        random: start from N(0, 0.02^2) instead of the words' embeddings.

    Raises:
        ValueError: unknown option, or a learner whose sentences do not say where the class name is.
    """

    class_bound = True
    vectors: nn.Parameter
    start: Tensor
    label: Tensor
    column: Tensor
    lengths: Tensor
    slots: Tensor

    def __init__(
        self,
        model: CLIP,
        inner: Learner,
        classnames: Sequence[str],
        tokens: str = "all",
        place: str = "name",
        random: bool = False,
    ):
        super().__init__()
        if tokens not in TOKENS or place not in PLACES:
            raise ValueError(f"label tokens {tokens!r} at {place!r}: expected {TOKENS} at {PLACES}")
        if inner.conditional or not hasattr(inner, "name_start"):
            raise ValueError(f"label tokens need fixed sentences with class names, {type(inner).__name__} has none")
        self.inner = inner
        self.text_modes, self.vision_modes = inner.text_modes, inner.vision_modes
        self.half_prompts = inner.half_prompts
        words = [word_tokens(model, readable(name)) for name in classnames]
        ids, prompts = inner.text_prompts()
        names = cast(Tensor, inner.name_start).cpu()  # (R,)
        self.begin = names
        if place == "prefix" and prompts is not None and prompts.slots is not None:
            self.begin = prompts.slots.cpu().expand(len(ids), -1).amax(dim=1) + 1
        self.end = ids.cpu().argmax(dim=1)
        self._check(ids.cpu(), words, names)
        most = {"all": max(map(len, words)), "shortest": min(map(len, words)), "one": 1}[tokens]
        with torch.no_grad():
            table = model.token_embedding.weight
            self.words = [table[torch.tensor(word, device=table.device)].float().cpu() for word in words]
        self.most = most
        self.arrange([word[:most] for word in self.words])
        if random:
            nn.init.normal_(self.vectors, std=PROMPT_STD)
            self.start.copy_(self.vectors.detach())

    def _check(self, ids: Tensor, words: list[list[int]], begin: Tensor) -> None:
        """The class names must be where the sentences say they are."""
        for row, first in enumerate(begin.tolist()):
            word = words[row // self.text_modes]
            if ids[row, first : first + len(word)].tolist() != word:
                raise ValueError(f"sentence {row} does not hold the tokens of its class name from position {first} on")

    def arrange(self, values: Sequence[Tensor]) -> None:
        """Give every class its vectors (k, d): as many as the longest, or as its name has tokens if that is less."""
        counts = [len(value) for value in values]
        modes, most = self.text_modes, max(counts)
        slots = torch.empty(len(self.begin), most, dtype=torch.int64)
        for row, (first, end) in enumerate(zip(self.begin.tolist(), self.end.tolist())):
            k = counts[row // modes]
            # shorter names fill up with positions behind the end of their sentence, which nothing reads
            slots[row] = torch.tensor([*range(first, first + k), *range(end + 1, end + 1 + most - k)])
        device = self.vectors.device if hasattr(self, "vectors") else slots.device
        rows = [(c, j) for c, k in enumerate(counts) for j in range(k)]
        place = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
        vectors = torch.cat(list(values)).to(device, torch.float32)
        self.vectors = nn.Parameter(vectors.clone())
        self.register_buffer("lengths", torch.tensor(counts, device=device))  # in the checkpoint, to split `vectors`
        for name, value in {"start": vectors, "label": place[:, 0], "column": place[:, 1], "slots": slots}.items():
            self.register_buffer(name, value.clone().to(device), persistent=False)

    def tokens_by_class(self) -> list[Tensor]:
        """Vectors (k, d) of every class."""
        return list(self.vectors.detach().split(self.lengths.tolist()))

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        return self.inner.text_prompts()

    def vision_prompts(self) -> Prompts | None:
        return self.inner.vision_prompts()

    def label_tokens(self) -> Prompts | None:
        if not len(self.vectors):
            return None
        most = self.slots.shape[1]
        padded = self.vectors.new_zeros(len(self.lengths), most, self.vectors.shape[1])
        padded = padded.index_put((self.label, self.column), self.vectors)  # (C, q, d)
        return Prompts((padded.repeat_interleave(self.text_modes, dim=0),), self.slots)

    def drift(self) -> Tensor:
        """|E - E0|^2 over all label tokens, the parameter term (LAMM, hierarchical loss)."""
        return (self.vectors - self.start).square().sum()


def feature_term(text: Tensor, reference: Tensor, label: Tensor, modes: int, skip_single_class: bool) -> Tensor:
    """Mean over images and modes of 1 - cos between the class's text feature and its reference.

    Args:
        text, reference: (C * N, E), class-major; the reference gets no gradient.
        label: (B,) classes of the images.
        modes: N.
        skip_single_class: 0 when all images of the batch are of one class.
    """
    distance = 1 - (normalise(text) * normalise(reference.detach())).sum(dim=-1)  # (C * N,)
    mean = distance.unflatten(0, (-1, modes)).mean(dim=1)[label].mean()
    return mean * (label != label[0]).any() if skip_single_class else mean


def logit_term(logits: Tensor, reference: Tensor, temperature: float, target: str) -> Tensor:
    """T^2 * cross-entropy between the softmax of both logits (B, C) at temperature T, mean over images.

    `target` reference: the reference is the soft target, without gradient. trained: the trained logits are the target
    and the reference the prediction, both with gradient (released code).
    """
    if target == "trained":
        return distillation_loss(reference, logits, temperature)
    return distillation_loss(logits, reference.detach(), temperature)


def aligned(method: type[PromptTrainer], trainer_name: str) -> type[PromptTrainer]:
    """The trainer of a registered method with label tokens and the hierarchical loss, registered as `trainer_name`."""

    class LabelAligned(method):  # type: ignore[misc, valid-type]
        by_steps = True
        reference: Encoded | None = None  # text features with plain words, of the learner as it starts
        kept: dict[str, Tensor] | None = None  # label tokens of classes trained before these, by name

        @staticmethod
        def defaults() -> CfgNode:
            return CfgNode({**method.defaults(), "LAMM": DEFAULTS})  # type: ignore[attr-defined]

        @property
        def label_options(self) -> CfgNode:
            return self.cfg.TRAINER.LAMM

        def check_cfg(self, cfg) -> None:
            super().check_cfg(cfg)
            options = cfg.TRAINER.LAMM
            choices = {"TOKENS": TOKENS, "PLACE": PLACES, "LOGIT_TARGET": TARGETS}
            choices |= {"REFERENCE": REFERENCES, "UNSEEN": UNSEEN}
            weight = (lambda value: value is None or value >= 0, "0 or more")
            rules: dict = {key: (known.__contains__, f"one of {', '.join(known)}") for key, known in choices.items()}
            rules |= dict.fromkeys(("W_PARAM", "W_FEATURE", "W_LOGIT"), weight)
            rules["TEMPERATURE"] = (lambda value: value > 0, "a number above 0")
            self.check_options(cfg, rules, "LAMM")
            if options.HIERARCHICAL and options.W_PARAM is None and cfg.DATASET.NUM_SHOTS < 1:
                raise ValueError(
                    "TRAINER.LAMM.W_PARAM None is 1 / shots: set DATASET.NUM_SHOTS, or W_PARAM to a number"
                )

        def build_learner(self, model, classnames) -> Learner:
            options = self.label_options
            inner = super().build_learner(model, classnames)
            return LabelTokens(model, inner, classnames, options.TOKENS, options.PLACE, options.RANDOM_INIT)

        def build_score(self, learner):
            return super().build_score(learner.inner)

        def build_model(self) -> None:
            super().build_model()
            self.metrics_of_step: dict[str, Tensor] = {}
            if self.label_options.HIERARCHICAL and self.label_options.REFERENCE == "start":
                with torch.no_grad(), self.precision.autocast():
                    self.reference = self.encode_words()

        def encode_words(self) -> Encoded:
            """Text features of the learner with the plain words of all class names."""
            return self.model.clip.encode_text(*self.model.learner.text_prompts())

        def extra_losses(self, output: Output, label: Tensor) -> dict[str, Tensor]:
            self.metrics_of_step = super().extra_metrics()  # before the reference is scored
            terms, options = super().extra_losses(output, label), self.label_options
            if not options.HIERARCHICAL:
                return terms
            learner = self.model.learner
            reference = self.encode_words() if self.reference is None else self.reference
            logits = self.model.score(output.image, reference, self.model.clip.logit_scale.exp())
            weight = 1 / self.cfg.DATASET.NUM_SHOTS if options.W_PARAM is None else options.W_PARAM
            feature = feature_term(
                output.text.pooled, reference.pooled, label, learner.text_modes, options.SKIP_SINGLE_CLASS
            )
            logit = logit_term(output.logits, logits, options.TEMPERATURE, options.LOGIT_TARGET)
            return {
                **terms,
                "param": weight * learner.drift(),
                "feature": options.W_FEATURE * feature,
                "logit": options.W_LOGIT * logit,
            }

        def extra_metrics(self) -> dict[str, Tensor]:
            return self.metrics_of_step

        def for_classes(self, path, checkpoint) -> dict[str, Tensor]:
            """Label tokens by class name: those of the file where it has them, else plain words, if UNSEEN allows.

            Raises:
                ValueError: other classes and UNSEEN is `refuse`, or the learner around the tokens is class-bound.
            """
            learner, stored = self.model.learner, list(checkpoint.get("classnames") or ())
            weights = dict(checkpoint["state_dict"])
            if learner.inner.class_bound or not stored:
                check_classnames(path, checkpoint, self.classnames())
            elif self.label_options.UNSEEN == "refuse":
                try:
                    check_classnames(path, checkpoint, self.classnames())
                except ValueError as fault:
                    raise ValueError(f"{fault}; TRAINER.LAMM.UNSEEN words matches classes by name") from fault
            if not self.label_options.LOAD_TOKENS:
                weights["vectors"] = learner.start
            elif stored and {"vectors", "lengths"} <= weights.keys():
                kept = (checkpoint.get("extra") or {}).get("label_tokens", {})
                trained = weights["vectors"].split(weights["lengths"].tolist())
                self.match_tokens({**kept, **dict(zip(stored, trained))})
                weights["vectors"], weights["lengths"] = learner.vectors.detach(), learner.lengths
            return weights

        def match_tokens(self, known: dict[str, Tensor]) -> None:
            """Lays out the learner with the `known` vectors of classes by name.

            A class that is not known has its words; vectors of classes that are not among these are kept.
            """
            learner, names = self.model.learner, self.classnames()
            found = [name for name in names if name in known]
            most = max([learner.most, *(len(known[name]) for name in found)])
            empty = learner.vectors.detach()[:0].cpu()
            values = []
            for name, word in zip(names, learner.words):
                value = known.get(name, empty).cpu()
                values.append(torch.cat([value, word[len(value) : most]]))
            learner.arrange(values)
            self.kept = {name: value for name, value in known.items() if name not in found}
            if len(found) < len(names):
                missing = [name for name in names if name not in known]
                shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
                logger.warning("%d classes were not trained and use their plain words: %s", len(missing), shown)

        def extra_state(self) -> dict:
            state = super().extra_state()
            return {**state, "label_tokens": self.kept} if self.kept else state

        def load_extra_state(self, state: dict) -> None:
            self.kept = state.get("label_tokens")
            super().load_extra_state({key: value for key, value in state.items() if key != "label_tokens"})

    LabelAligned.__name__ = LabelAligned.__qualname__ = trainer_name
    LabelAligned.__doc__ = f"{method.__name__} with trainable label tokens and LAMM's hierarchical loss."
    TRAINER_REGISTRY.register()(LabelAligned)
    return LabelAligned


LAMM = aligned(TRAINER_REGISTRY.get("ZeroshotCLIP"), "LAMM")
CoOpLAMM = aligned(TRAINER_REGISTRY.get("CoOp"), "CoOpLAMM")
MaPLeLAMM = aligned(TRAINER_REGISTRY.get("MaPLe"), "MaPLeLAMM")
ALIGNLAMM = aligned(TRAINER_REGISTRY.get("ALIGN"), "ALIGNLAMM")
