"""CoOp: learned context vectors in front of the class name (Zhou et al., IJCV 2022, Section 3)."""

from __future__ import annotations

from yacs.config import CfgNode

from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.options import CLASS_TOKEN_POSITION, context_init, count, precision
from trainers.parts.prompts import Learner, TextContext

from .base import PromptTrainer


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Cosine logits against sentences `[v_1] ... [v_n] NAME.` whose n vectors are learned by cross-entropy.

    With CTX_INIT the context has as many vectors as the phrase has tokens and N_CTX is not used. The released code
    ignores CSC when CTX_INIT is given; here every class then starts from the phrase.
    """

    node = "COOP"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "COOP",
            {
                "N_CTX": count(16, "n, number of context vectors; not used when CTX_INIT is given"),
                "CTX_INIT": context_init(of="words that start the context, one vector for each of their tokens"),
                "CSC": Option(False, "class-specific context"),
                "CLASS_TOKEN_POSITION": CLASS_TOKEN_POSITION,
                "PREC": precision(),
            },
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return TextContext(
            model, classnames, options.N_CTX, options.CTX_INIT, options.CSC, options.CLASS_TOKEN_POSITION
        )
