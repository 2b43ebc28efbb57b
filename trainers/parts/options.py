"""Options that several methods share, which each names in its `defaults()`; and a trainer that has options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainers.parts.engine import PRECISIONS, CfgNode, ConfigError, Option, problems_of
from trainers.parts.prompts import CLASS_POSITIONS
from trainers.parts.templates import TEMPLATE_SETS
from transport.sinkhorn import THRESHOLDS


class WithOptions:
    """Part of a trainer: a section `node` of options below TRAINER, checked before data are read."""

    node = ""
    cfg: Any

    @property
    def options(self) -> Any:
        """The trainer's config node."""
        return self.cfg.TRAINER[self.node]

    @staticmethod
    def defaults() -> CfgNode:
        """The trainer's sections below TRAINER, made by `method_options`."""
        return CfgNode()

    @classmethod
    def config_problems(cls, cfg: CfgNode) -> list[str]:
        """Relations of options that do not hold, in words; of values that are right by themselves."""
        return []

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the trainer's options.

        Raises:
            ConfigError: names every option that is out of range, or else every relation that does not hold.
        """
        prefixes = tuple(f"TRAINER.{section}." for section in self.defaults())
        if problems := problems_of(cfg, prefixes) or self.config_problems(cfg):
            raise ConfigError("the config", problems)

    def precision_name(self) -> str:
        """Value of the option PREC."""
        return str(self.options.PREC)


def precision(default: str = "fp16", choices: Sequence[str] = PRECISIONS, more: str = "") -> Option:
    """Option of the numbers a method computes with."""
    return Option(default, f"precision, see docs/engine.md{more}", choices=choices)


def count(default: int, of: str, low: int = 1) -> Option:
    """Option of a whole number from `low`."""
    return Option(default, of, low=low)


def weight(default: float | None, of: str) -> Option:
    """Option of a weight, 0 or more."""
    return Option(default, of, low=0, kind=float)


def share(default: float, of: str) -> Option:
    """Option of a share above 0, at most 1."""
    return Option(default, of, above=0, high=1)


def templates(of: str = 'sentences, see [zero-shot CLIP](zsclip.md); "" = imagenet7') -> Option:
    """Option of the sentences of a text classifier, see `CLIPTrainer.text_classifier`."""
    return Option("", of, choices=("", "descriptions", "both", *TEMPLATE_SETS))


def context(default: int) -> Option:
    """Number n of context vectors."""
    return count(default, "n, number of context vectors; with CTX_INIT its number of tokens")


def context_init(default: str = "", of: str = "words that start the context") -> Option:
    """Words in the place of random vectors."""
    return Option(default, f"{of}; empty = random, N(0, 0.02²)")


CLASS_TOKEN_POSITION = Option("end", "place of the class name in the context", choices=CLASS_POSITIONS)

VISION_SCALE = weight(1.0, "factor on the visual prompts at the start; 0: they start at zero")

PLOT_OPTIONS = {
    "LAMBDA": Option(0.1, "entropic weight", above=0),
    "MAX_ITER": count(100, "Sinkhorn iterations at most"),
    "STOP": Option(
        "marginal",
        "marginal: every pair stops by itself; scaling_change: all pairs of a batch together, the released rule",
        choices=tuple(THRESHOLDS),
    ),
    "THRESHOLD": Option(
        None, "error at which Sinkhorn stops; None = 1e-3 (marginal) or 1e-2 (scaling_change)", above=0, kind=float
    ),
}
"""Options of the methods with `trainers.parts.set_transport.SetTransport`."""
