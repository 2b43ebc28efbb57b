"""LAMM: trainable label tokens in the place of class names, around the learners of other methods.

Gao et al., "LAMM: Label Alignment for Multi-Modal Prompt Learning", AAAI 2024.

`LAMM` trains the tokens in fixed sentences, `CoOpLAMM`, `MaPLeLAMM` and `ALIGNLAMM` train them together with what CoOp,
MaPLe and ALIGN learn. All four are the registered method with a `LabelAlignment` around it: its learner, inside
`LabelTokens`, its score, and the hierarchical loss on top.
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip import Encoded
from trainers.parts.engine import TRAINER_REGISTRY, Option, check_classnames, method_options
from trainers.parts.label_tokens import PLACES, TOKENS, LabelTokens, feature_term, logit_term
from trainers.parts.options import weight
from trainers.parts.prompts import Learner
from trainers.parts.wrapper import Wrapper, wrap

logger = logging.getLogger(__name__)

TARGETS = ("reference", "trained")
REFERENCES = ("start", "moving")
UNSEEN = ("refuse", "words")

OPTIONS = {
    "TOKENS": Option(
        "all",
        "tokens of a class name that are trained; shortest: of every name as many as the shortest has (released)",
        choices=TOKENS,
    ),
    "PLACE": Option(
        "name",
        "name: in the place of the name's tokens; prefix: right behind the context, and the whole name stays (what the "
        "released MaPLe+LAMM does with q = 1)",
        choices=PLACES,
    ),
    "RANDOM_INIT": Option(False, "start from N(0, 0.02²) instead of the words"),
    "HIERARCHICAL": Option(True, "the three loss terms below"),
    "W_PARAM": weight(None, "of the parameter term; None = 1 / shots (paper), the released scripts ran with 1"),
    "W_FEATURE": weight(1.0, "of the feature term"),
    "W_LOGIT": weight(0.05, "of the logit term"),
    "TEMPERATURE": Option(2.0, "of the logit term", above=0),
    "LOGIT_TARGET": Option(
        "reference",
        "soft target of the logit term: the reference, without gradient (paper), or the trained logits, both sides "
        "with gradient (released)",
        choices=TARGETS,
    ),
    "REFERENCE": Option(
        "start",
        "text the terms compare with, plain words in each: of the learner as it starts, or as it is now (released)",
        choices=REFERENCES,
    ),
    "SKIP_SINGLE_CLASS": Option(False, "no feature term in batches of one class only (released)"),
    "UNSEEN": Option(
        "refuse",
        "classes that were not trained: an error, or their plain words; classes are matched by name",
        choices=UNSEEN,
    ),
    "LOAD_TOKENS": Option(True, "False: evaluation starts from the words again (released MaPLe+LAMM)"),
}


class LabelAlignment(Wrapper):
    """Label tokens in the learner of another method, and the hierarchical loss on top of its own."""

    node = "LAMM"
    reference: Encoded | None = None  # text features with plain words, of the learner as it starts
    kept: dict[str, Tensor] | None = None  # label tokens of classes trained before these, by name

    @staticmethod
    def defaults() -> CfgNode:
        return method_options("LAMM", OPTIONS)

    def check_cfg(self, cfg) -> None:
        options = cfg.TRAINER.LAMM
        if options.HIERARCHICAL and options.W_PARAM is None and cfg.DATASET.NUM_SHOTS < 1:
            raise ValueError("TRAINER.LAMM.W_PARAM None is 1 / shots: set DATASET.NUM_SHOTS, or W_PARAM to a number")

    def learner(self, inner, model, classnames) -> Learner:
        options = self.options
        return LabelTokens(model, inner, classnames, options.TOKENS, options.PLACE, options.RANDOM_INIT)

    def inner(self, learner) -> Learner:
        return learner.inner

    @property
    def tokens(self) -> LabelTokens:
        """The learner once it is built."""
        return cast(LabelTokens, self.trainer.model.learner)

    def built(self) -> None:
        if self.options.HIERARCHICAL and self.options.REFERENCE == "start":
            with torch.no_grad(), self.trainer.precision.autocast():
                self.reference = self.encode_words()

    def encode_words(self) -> Encoded:
        """Text features of the learner with the plain words of all class names."""
        return self.trainer.model.clip.encode_text(*self.trainer.model.learner.text_prompts())

    def losses(self, terms, output, label) -> dict[str, Tensor]:
        options, model = self.options, self.trainer.model
        if not options.HIERARCHICAL:
            return terms
        reference = self.encode_words() if self.reference is None else self.reference
        logits = model.score(output.image, reference, model.clip.logit_scale.exp())
        weight = 1 / self.trainer.cfg.DATASET.NUM_SHOTS if options.W_PARAM is None else options.W_PARAM
        modes, skip = model.learner.text_modes, options.SKIP_SINGLE_CLASS
        feature = feature_term(output.text.pooled, reference.pooled, label, modes, skip)
        logit = logit_term(output.logits, logits, options.TEMPERATURE, options.LOGIT_TARGET)
        return {
            **terms,
            "param": weight * self.tokens.parameter_distance(),
            "feature": options.W_FEATURE * feature,
            "logit": options.W_LOGIT * logit,
        }

    def weights(self, path, checkpoint, own) -> dict[str, Tensor]:
        """Label tokens by class name: those of the file where it has them, else plain words, if UNSEEN allows.

        Raises:
            ValueError: other classes and UNSEEN is `refuse`, or the learner around the tokens is class-bound.
        """
        learner, stored = self.tokens, list(checkpoint.get("classnames") or ())
        weights, names = dict(checkpoint["state_dict"]), self.trainer.classnames()
        if learner.inner.class_bound or not stored:
            check_classnames(path, checkpoint, names)
        elif self.options.UNSEEN == "refuse":
            try:
                check_classnames(path, checkpoint, names)
            except ValueError as err:
                raise ValueError(f"{err}; TRAINER.LAMM.UNSEEN words matches classes by name") from err
        if not self.options.LOAD_TOKENS:
            weights["vectors"] = learner.start
        elif stored and {"vectors", "lengths"} <= weights.keys():
            kept = (checkpoint.get("extra") or {}).get("label_tokens", {})
            trained = weights["vectors"].split(weights["lengths"].tolist())
            self.match_tokens(names, {**kept, **dict(zip(stored, trained))})
            weights["vectors"], weights["lengths"] = learner.vectors.detach(), learner.lengths
        return weights

    def match_tokens(self, names: list[str], known: dict[str, Tensor]) -> None:
        """Gives the classes the `known` vectors of their names; vectors of classes not among these are kept."""
        self.tokens.match(names, known)
        self.kept = {name: value for name, value in known.items() if name not in names}
        missing = [name for name in names if name not in known]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            logger.warning("%d classes were not trained and use their plain words: %s", len(missing), shown)

    def state(self) -> dict:
        return {"label_tokens": self.kept} if self.kept else {}

    def load_state(self, state) -> None:
        self.kept = state.pop("label_tokens", None)


LAMM = wrap(TRAINER_REGISTRY.get("ZeroshotCLIP"), LabelAlignment, "LAMM")
CoOpLAMM = wrap(TRAINER_REGISTRY.get("CoOp"), LabelAlignment, "CoOpLAMM")
MaPLeLAMM = wrap(TRAINER_REGISTRY.get("MaPLe"), LabelAlignment, "MaPLeLAMM")
ALIGNLAMM = wrap(TRAINER_REGISTRY.get("ALIGN"), LabelAlignment, "ALIGNLAMM")
