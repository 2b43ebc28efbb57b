"""ALIGN: multi-mode prompts of both towers, compared by two levels of optimal transport.

Wang et al., "Tuning Multi-mode Token-level Prompt Alignment across Modalities", NeurIPS 2023. An image has M visual
prompts, a class N textual prompts; every (visual, textual) pair is compared token by token, and the M x N pairs are
weighted by a transport plan between the two sets of prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip import Encoded
from dassl.config import accept_lists
from dassl.engine import TRAINER_REGISTRY
from trainers.parts.modes import MultiModeLearner, mode_similarity
from trainers.parts.prompts import Learner
from transport.scores import align_scores

from .base import PromptTrainer, Score

accept_lists("TRAINER.ALIGN.CTX_INIT")
SCORES = ("paper", "released")
PLANS = ("learned", "uniform")


class TwoLevelTransport:
    """The score of ALIGN: (image: Encoded of B * M rows, text: Encoded of C * N rows, scale) -> logits (B, C).

    `paper`: logit = scale * (1 - <T, C>) with C_mn = 1 - cos(x_m, y_n) + beta * d_mn, where d_mn is the transport cost
    between the tokens of image prompt m (patches and visual prompts) and those of sentence n (context and class name),
    and T the plan of the prompts for C (paper, Section 3). `released`: what the authors' code computes instead, see
    `transport.scores.align_scores`; its text tokens run from the start token over as many positions as mode 0 has
    before its period.

    `entropy` holds the entropies of the last call's plans, 1 = uniform, so that a log shows what transport adds.
    """

    def __init__(self, learner: MultiModeLearner, options: CfgNode, compiled: bool = False):
        self.learner, self.options, self.compiled = learner, options, compiled
        self.entropy: dict[str, Tensor] = {}

    def text_mask(self, length: int) -> Tensor:
        """(C, N, length) bool: the tokens of every sentence that take part in token-level transport."""
        learner = self.learner
        shape = (-1, learner.text_modes)
        if self.options.SCORE == "paper":
            return learner.body[:, :length].unflatten(0, shape)
        end = learner.end.unflatten(0, shape)[:, :1, None]  # (C, 1, 1), of mode 0
        position = torch.arange(length, device=end.device)
        return (position < end - 1).expand(-1, learner.text_modes, -1)

    def __call__(self, image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
        options = self.options
        images, classes = (-1, self.learner.vision_modes), (-1, self.learner.text_modes)
        result = align_scores(
            image.pooled.unflatten(0, images),  # (B, M, E)
            image.tokens[:, 1:].unflatten(0, images),  # (B, M, J, E), without the class token
            text.pooled.unflatten(0, classes),  # (C, N, E)
            text.tokens.unflatten(0, classes),  # (C, N, L, E)
            self.text_mask(text.tokens.shape[1]),
            scale,
            mode=options.SCORE,
            plan=options.PLAN,
            beta=options.BETA,
            reg=options.LAMBDA,
            max_iter=options.MAX_ITER,
            threshold=options.THRESHOLD,
            compiled=self.compiled,
        )
        self.entropy = {"token_entropy": result.token_entropy, "prompt_entropy": result.prompt_entropy}
        self.entropy["mode_similarity_image"] = mode_similarity(image.pooled.unflatten(0, images))
        self.entropy["mode_similarity_text"] = mode_similarity(text.pooled.unflatten(0, classes))
        return result.scores


@TRAINER_REGISTRY.register()
class ALIGN(PromptTrainer):
    """Coupled multi-mode prompts (MaPLe's deep prompts, M = N of them) scored by two-level transport."""

    node = "ALIGN"
    compiles = True  # the transport of the token level
    model_name = "MultiModalPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {
                "ALIGN": {
                    "PREC": "fp16",  # fp32, fp16, amp or bf16
                    "N_CTX": 2,  # prompt length b, the same in both towers
                    # words that start textual mode 0, the others are random; or a list, one text for each mode; empty =
                    # random
                    "CTX_INIT": "a photo of a",
                    "KEEP_REST": True,  # words of CTX_INIT beyond N_CTX stay, frozen, in the sentences of that mode
                    "VISION_PROMPT_NUMBER": 4,  # M
                    "TEXT_PROMPT_NUMBER": 4,  # N
                    "PROMPT_DEPTH": 9,  # J, layers with their own prompts; 1 = input only
                    "COUPLED": True,  # visual prompts are linear maps of the textual ones (needs M = N)
                    "SHARED_START": False,  # the deep maps start as copies of one, as in the released code
                    "VISION_SCALE": 1.0,  # factor on the visual prompts at the start; 0 = they start at zero
                    "MODE_BIAS": False,  # coupled visual modes have a bias each in the place of one that all share
                    "SCORE": "paper",  # paper or released
                    "PLAN": "learned",  # learned or uniform (the ablation)
                    "BETA": 1.0,  # weight of the token level in the prompt-level cost
                    "LAMBDA": 0.1,  # entropic weight of both levels
                    "MAX_ITER": 100,  # Sinkhorn iterations at most
                    "THRESHOLD": None,  # Sinkhorn stops below this error; None = default of the score
                }
            }
        )

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        options = cfg.TRAINER.ALIGN
        problems = []
        for key, choices in (("SCORE", SCORES), ("PLAN", PLANS)):
            if options[key] not in choices:
                problems.append(f"TRAINER.ALIGN.{key} is {options[key]!r}, expected one of {', '.join(choices)}")
        for key in ("LAMBDA", "THRESHOLD"):
            if options[key] is not None and not options[key] > 0:
                problems.append(f"TRAINER.ALIGN.{key} is {options[key]}, expected a number above 0")
        if options.MAX_ITER < 1:
            problems.append(f"TRAINER.ALIGN.MAX_ITER is {options.MAX_ITER}, expected at least 1")
        if not options.BETA >= 0:
            problems.append(f"TRAINER.ALIGN.BETA is {options.BETA}, expected 0 or more")
        if cfg.TRAIN.COMPILE and (options.SCORE, options.PLAN) != ("paper", "learned"):
            problems.append(
                f"TRAIN.COMPILE is True, but TRAINER.ALIGN.SCORE is {options.SCORE} and PLAN is {options.PLAN}, "
                "expected paper and learned: only their transport is compiled"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def build_learner(self, model, classnames) -> Learner:
        options = self.options
        return MultiModeLearner(
            model,
            classnames,
            n_ctx=options.N_CTX,
            depth=options.PROMPT_DEPTH,
            text_modes=options.TEXT_PROMPT_NUMBER,
            vision_modes=options.VISION_PROMPT_NUMBER,
            init=options.CTX_INIT,
            keep_rest=options.KEEP_REST,
            coupled=options.COUPLED,
            shared_start=options.SHARED_START,
            vision_scale=options.VISION_SCALE,
            mode_bias=options.MODE_BIAS,
        )

    def build_score(self, learner) -> Score:
        self.transport = TwoLevelTransport(learner, self.options, self.cfg.TRAIN.COMPILE)
        return self.transport

    def extra_metrics(self) -> dict[str, Tensor]:
        return self.transport.entropy
