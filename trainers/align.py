"""ALIGN: multi-mode prompts of both towers, compared by two levels of optimal transport.

Wang et al., "Tuning Multi-mode Token-level Prompt Alignment across Modalities", NeurIPS 2023. An image has M visual
prompts, a class N textual prompts; every (visual, textual) pair is compared token by token, and the M x N pairs are
weighted by a transport plan between the two sets of prompts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from clip import Encoded
from clip.text_plan import Remembered
from dassl.config import Option, method_options
from dassl.engine import TRAINER_REGISTRY
from trainers.parts.modes import MultiModeLearner, mode_similarity
from trainers.parts.options import VISION_SCALE, count, precision, weight
from trainers.parts.prompts import Learner
from transport.scores import align_scores, set_sizes
from transport.sinkhorn import GRADIENTS, entropies, full_precision, normalized, sinkhorn, transport_cost, uniform_mass

from .base import PromptTrainer, Score

SCORES = ("paper", "released")
PLANS = ("learned", "uniform")


def align_logits(
    x: Tensor,
    r: Tensor,
    y: Tensor,
    s: Tensor,
    mask: Tensor,
    scale: Tensor | float,
    mode: str = "paper",
    plan: str = "learned",
    beta: float = 1.0,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    gradient: str = "constant",
) -> tuple[Tensor, Tensor, Tensor]:
    """ALIGN's two levels of transport, as they are defined (paper, Section 3).

    `paper`: d is what transport between the tokens costs, and the logit falls with the cost of transport between the
    prompts. `released` is what the authors' code computes instead: the token-level *similarity* is added to the cost,
    and the logit is the mean similarity under T, so that the token level acts through T alone and gets no gradient.
    `uniform`: both plans are the products of their marginals (the ablation).

    Args:
        x, r: image features (B, M, E) and tokens (B, M, J, E).
        y, s: text features (C, N, E) and tokens (C, N, L, E).
        mask: (C, N, L) bool, tokens that belong to each sentence's set.
        scale, beta: logit scale, weight of the token level.
        reg, max_iter, threshold: of both levels, see `sinkhorn`; `released` has the rule `scaling_change`.
        gradient: see `transport_cost`.

    Returns:
        Logits (B, C), token-level plans (B, C, M, N, J, L) and prompt-level plans (B, C, M, N).
    """
    x, r, y, s = (F.normalize(full_precision(v), dim=-1) for v in (x, r, y, s))
    paper, rule = mode == "paper", ("marginal" if mode == "paper" else "scaling_change")
    gradient = gradient if plan == "learned" else "constant"

    def transport(cost: Tensor, cols: Tensor, together: int | None) -> Tensor:
        rows = cost.new_full((cost.shape[-2],), 1 / cost.shape[-2])
        if plan == "uniform":
            return (rows[:, None] * cols.unsqueeze(-2)).expand_as(cost)
        return sinkhorn(cost, rows, cols, reg, max_iter, threshold, rule, 1 if paper else together).plan

    cost = 1 - torch.einsum("bmje,cnle->bcmnjl", r, s)  # token level
    T_mn = transport(cost, uniform_mass(mask, cost.dtype)[:, None], x.shape[1] * y.shape[1])
    d = transport_cost(cost, T_mn, reg, gradient)

    S = torch.einsum("bme,cne->bcmn", x, y)  # prompt level
    C = 1 - S + beta * (d if paper else 1 - d.detach())
    T = transport(C, C.new_full((C.shape[-1],), 1 / C.shape[-1]), None)
    logits = scale * (1 - transport_cost(C, T, reg, gradient) if paper else (T * S).sum((-2, -1)))
    return logits, T_mn, T


class TwoLevelTransport:
    """The score of ALIGN: (image: Encoded of B * M rows, text: Encoded of C * N rows, scale) -> logits (B, C).

    Tokens of an image prompt are the patches and visual prompts, those of a sentence its context and class name; in the
    `released` form from the start token over as many positions as mode 0 has before its period.

    `metrics` holds the entropies of the last call's plans, 1 = uniform, and the mean cosine between the modes of either
    tower, 1 = one prompt computed several times, so that a log shows what transport and modes add.
    """

    def __init__(self, learner: MultiModeLearner, options: CfgNode):
        self.learner, self.options = learner, options
        self.known_sets: Remembered[tuple[Tensor, list[int] | None]] = Remembered()
        self.metrics: dict[str, Tensor] = {}

    def text_mask(self, length: int) -> Tensor:
        """(C, N, length) bool: the tokens of every sentence that take part in token-level transport."""
        learner = self.learner
        shape = (-1, learner.text_modes)
        if self.options.SCORE == "paper":
            return learner.body[:, :length].unflatten(0, shape)
        end = learner.end.unflatten(0, shape)[:, :1, None]  # (C, 1, 1), of mode 0
        position = torch.arange(length, device=end.device)
        return (position < end - 1).expand(-1, learner.text_modes, -1)

    def text_sets(self, length: int) -> tuple[Tensor, list[int] | None]:
        """`text_mask` and the sizes of its sets, read once; without them in a traced graph."""
        mask = self.text_mask(length)
        stop = "marginal" if self.options.SCORE == "paper" else "scaling_change"
        return mask, None if torch.compiler.is_exporting() else set_sizes(mask, stop)

    def features(self, image: Encoded, text: Encoded) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments x, r, y and s of `align_logits`; r is without the class token."""
        images, classes = (-1, self.learner.vision_modes), (-1, self.learner.text_modes)
        x, r = image.pooled.unflatten(0, images), image.tokens[:, 1:].unflatten(0, images)
        return x, r, text.pooled.unflatten(0, classes), text.tokens.unflatten(0, classes)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `align_logits` that are options."""
        options = self.options
        return {
            "mode": options.SCORE,
            "plan": options.PLAN,
            "beta": options.BETA,
            "reg": options.LAMBDA,
            "max_iter": options.MAX_ITER,
            "threshold": options.THRESHOLD,
            "gradient": options.GRADIENT,
        }

    def __call__(self, image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
        x, r, y, s = self.features(image, text)
        length, learner = s.shape[2], self.learner
        mask, sizes = self.known_sets(lambda: self.text_sets(length), (learner.body, learner.end), length)
        features = (x, r, y, s, mask, scale)
        if self.options.FAST or torch.compiler.is_exporting():
            found = align_scores(*features, **self.settings, sizes=sizes)
            logits, entropy = found.scores, (found.token_entropy, found.prompt_entropy)
        else:
            with torch.autocast(x.device.type, enabled=False):
                logits, tokens, prompts = align_logits(*features, **self.settings)
            entropy = normalized(*entropies(tokens)).mean(), normalized(*entropies(prompts)).mean()
        self.metrics = dict(zip(("token_entropy", "prompt_entropy"), entropy))
        self.metrics |= {"mode_similarity_image": mode_similarity(x), "mode_similarity_text": mode_similarity(y)}
        return logits


@TRAINER_REGISTRY.register()
class ALIGN(PromptTrainer):
    """Coupled multi-mode prompts (MaPLe's deep prompts, M = N of them) scored by two-level transport."""

    node = "ALIGN"
    model_name = "MultiModalPromptLearner"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "ALIGN",
            {
                "VISION_PROMPT_NUMBER": count(4, "M"),
                "TEXT_PROMPT_NUMBER": count(4, "N"),
                "N_CTX": count(2, "b, prompt length, the same in both towers"),
                "CTX_INIT": Option(
                    "a photo of a",
                    "words that start textual mode 0, the other modes are random; or a list, a text for each mode "
                    '("" = random), of any lengths; empty = all random',
                    texts=True,
                ),
                "KEEP_REST": Option(True, "words of CTX_INIT beyond b stay, frozen, in the sentences of their mode"),
                "PROMPT_DEPTH": count(9, "J, layers with their own prompts; 1 = input only"),
                "COUPLED": Option(True, "visual prompts are maps of the textual ones (M = N); False: free ones"),
                "SHARED_START": Option(False, "the deep maps start as copies of one, as released"),
                "VISION_SCALE": VISION_SCALE,
                "MODE_BIAS": Option(False, "coupled visual modes have a bias each in the place of one that all share"),
                "SCORE": Option("paper", "released: see below", choices=SCORES),
                "PLAN": Option("learned", "uniform: the ablation without transport", choices=PLANS),
                "BETA": weight(1.0, "β, weight of the token level in the prompt-level cost"),
                "LAMBDA": Option(0.1, "λ, entropic weight of both levels", above=0),
                "MAX_ITER": count(100, "Sinkhorn iterations at most"),
                "THRESHOLD": Option(
                    None, "error at which Sinkhorn stops; None = 1e-3, released 1e-2", above=0, kind=float
                ),
                "GRADIENT": Option(
                    "constant",
                    "constant: plans are constants (released); regularized: distances are the values that the plans "
                    "minimize, for which that is exact; implicit: exact gradient of the distances",
                    choices=GRADIENTS,
                ),
                "FAST": Option(True, "False: both levels as `align_logits` defines them, in more memory and time"),
                "PREC": precision(),
            },
        )

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        options = cfg.TRAINER.ALIGN
        if options.SCORE == "released" and options.GRADIENT != "constant":
            raise ValueError(
                f"TRAINER.ALIGN.GRADIENT is {options.GRADIENT!r}, expected constant, the only one of SCORE released"
            )
        if options.MODE_BIAS and not options.COUPLED:
            raise ValueError("TRAINER.ALIGN.MODE_BIAS is True, expected False without COUPLED")

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
        self.transport = TwoLevelTransport(learner, self.options)
        return self.transport

    def extra_metrics(self) -> dict[str, Tensor]:
        return self.transport.metrics
