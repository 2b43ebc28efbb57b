"""Methods around other methods: an object beside the wrapped trainer that is asked after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from clip import CLIP
from trainers.base import Output, PromptTrainer
from trainers.parts.engine import TRAINER_REGISTRY
from trainers.parts.prompted_clip import Score
from trainers.parts.prompts import Learner

Weights = Callable[[Path, Mapping[str, Any]], dict[str, Tensor]]


class Wrapper:
    """Additions of a method to another one; every hook keeps what the wrapped method says unless it is overridden.

    Attributes:
        node: name of its config node below TRAINER.
        trainer: the trainer of the wrapped method.
    """

    node = ""

    def __init__(self, trainer: PromptTrainer):
        self.trainer = trainer

    @property
    def options(self) -> CfgNode:
        """Its own config node; that of the wrapped method is `trainer.options`."""
        return self.trainer.cfg.TRAINER[self.node]

    @staticmethod
    def defaults() -> CfgNode:
        """{node: options}."""
        raise NotImplementedError("a wrapper says its options")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raises ValueError for options that are not possible."""

    def learner(self, inner: Learner, model: CLIP, classnames: list[str]) -> Learner:
        """The learner around the wrapped method's."""
        return inner

    def inner(self, learner: Learner) -> Learner:
        """The wrapped method's learner inside one that :meth:`learner` returned; its score is built from it."""
        return learner

    def built(self) -> None:
        """Hook once the model is built."""

    def losses(self, terms: dict[str, Tensor], output: Output, label: Tensor) -> dict[str, Tensor]:
        """All loss terms besides cross-entropy, those of the wrapped method being `terms`."""
        return terms

    def score(self, inner: Score) -> Score:
        """Score around the wrapped method's."""
        return inner

    def weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """All loss terms, cross-entropy `ce` among them, with the weights they have."""
        return terms

    def weights(self, path: Path, checkpoint: Mapping[str, Any], own: Weights) -> dict[str, Tensor]:
        """Learned weights of a checkpoint for the classes of this run; `own` is what the wrapped method does.

        Raises:
            ValueError: they cannot serve these classes.
        """
        return own(path, checkpoint)

    def state(self) -> dict[str, Any]:
        """Further contents of a checkpoint, under separate keys."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes its keys out of what :meth:`state` and the wrapped method saved."""


def wrap(method: type[PromptTrainer], wrapper: type[Wrapper], name: str) -> type[PromptTrainer]:
    """Registers the trainer `name`: a registered method with `wrapper` around it, as `self.wrapper`.

    Raises:
        ValueError: the method has a wrapper already.
    """
    if hasattr(method, "wrapper"):
        raise ValueError(f"{method.__name__} is wrapped already; {name} needs a method without a wrapper")

    class Wrapped(method):  # type: ignore[misc, valid-type]
        by_steps = True

        @property
        def wrapper(self) -> Any:
            if "_wrapper" not in self.__dict__:  # the first to ask is check_cfg, before anything is built
                self._wrapper = wrapper(self)
                self._metrics: dict[str, Tensor] = {}
            return self._wrapper

        @staticmethod
        def defaults() -> CfgNode:
            return CfgNode({**method.defaults(), **wrapper.defaults()})

        def check_cfg(self, cfg) -> None:
            super().check_cfg(cfg)
            self.wrapper.check_cfg(cfg)

        def build_learner(self, model, classnames) -> Learner:
            return self.wrapper.learner(super().build_learner(model, classnames), model, classnames)

        def build_score(self, learner) -> Score:
            return self.wrapper.score(super().build_score(self.wrapper.inner(learner)))

        def build_model(self) -> None:
            super().build_model()
            self.wrapper.built()

        def losses(self, batch) -> dict[str, Tensor]:
            return self.wrapper.weigh(super().losses(batch))

        def extra_losses(self, output, label) -> dict[str, Tensor]:
            self._metrics = super().extra_metrics()  # before the wrapper scores anything
            return self.wrapper.losses(super().extra_losses(output, label), output, label)

        def extra_metrics(self) -> dict[str, Tensor]:
            return self._metrics

        def for_classes(self, path, checkpoint) -> dict[str, Tensor]:
            return self.wrapper.weights(path, checkpoint, super().for_classes)

        def extra_state(self) -> dict[str, Any]:
            return {**super().extra_state(), **self.wrapper.state()}

        def load_extra_state(self, state) -> None:
            state = dict(state)
            self.wrapper.load_state(state)
            super().load_extra_state(state)

    Wrapped.__name__ = Wrapped.__qualname__ = name
    Wrapped.__doc__ = f"{method.__name__} with {wrapper.__name__} around it."
    TRAINER_REGISTRY.register()(Wrapped)
    return Wrapped
