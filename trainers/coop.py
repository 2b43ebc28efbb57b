"""CoOp: learned context vectors in front of the class name (Zhou et al., IJCV 2022, Section 3)."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
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
        return CfgNode(
            {
                "COOP": {
                    "N_CTX": 16,  # number of context vectors
                    "CSC": False,  # class-specific context
                    "CTX_INIT": "",  # words that start the context, empty = random
                    "PREC": "fp16",  # fp32, fp16, amp or bf16
                    "CLASS_TOKEN_POSITION": "end",  # end, middle or front
                }
            }
        )

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return TextContext(
            model, classnames, options.N_CTX, options.CTX_INIT, options.CSC, options.CLASS_TOKEN_POSITION
        )
