"""ALIGN: multi-mode prompts of both towers, compared by two levels of optimal transport.

Wang et al., "Tuning Multi-mode Token-level Prompt Alignment across Modalities", NeurIPS 2023. An image has M visual
prompts, a class N textual prompts; every (visual, textual) pair is compared token by token, and the M x N pairs are
weighted by a transport plan between the two sets of prompts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from clip import Encoded
from clip.text_plan import Remembered
from trainers.parts.engine import TRAINER_REGISTRY, Option, method_options
from trainers.parts.modes import MultiModeLearner, mode_similarity
from trainers.parts.options import VISION_SCALE, count, precision, weight
from trainers.parts.prompts import Learner
from transport.arguments import check_choices, full_precision, without_autocast
from transport.set_distances import check_axes, set_distances, set_sizes
from transport.sinkhorn import GRADIENTS, entropies, normalized, sinkhorn, transport_cost, uniform_mass

from .base import PromptTrainer, Score

SCORES = ("paper", "released")
PLANS = ("learned", "uniform")


class AlignLogits(NamedTuple):
    """Result of `align_logits`.

    logits: (B, C).
    prompt_plan: (B, C, M, N) plan T between the prompts, a constant.
    token_plans: (B, C, M, N, J, L) plans T_mn between the tokens, constants; None of the fast form.
    token_entropy, prompt_entropy: mean entropy of a level's plans over that of the uniform plan, in [0, 1]; 1 =
        transport is a plain average.
    iterations: (2,) mean Sinkhorn iterations of the token and of the prompt level.
    """

    logits: Tensor
    prompt_plan: Tensor
    token_plans: Tensor | None
    token_entropy: Tensor
    prompt_entropy: Tensor
    iterations: Tensor


@without_autocast
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
    stop: str | None = None,
    gradient: str = "constant",
    fast: bool = False,
    budget_bytes: int | None = None,
    sizes: list[int] | None = None,
) -> AlignLogits:
    """ALIGN's two levels of transport, as they are defined (paper, Section 3).

    `paper`: d is what transport between the tokens costs, and the logit falls with the cost of transport between the
    prompts. `released` is what the authors' code computes instead: the token-level *similarity* is added to the cost,
    and the logit is the mean similarity under T, so that the token level acts through T alone and gets no gradient.
    `uniform`: both plans are the products of their marginals (the ablation).

    Args:
        x, r: image features (B, M, E) and tokens (B, M, J, E).
        y, s: text features (C, N, E) and tokens (C, N, L, E).
        mask: (C, N, L) bool, tokens that belong to each sentence's set, at least one.
        scale, beta: logit scale, weight of the token level.
        reg, max_iter, threshold, stop: of both levels, see `sinkhorn`. None = the rule `marginal` of `paper`, and
            `scaling_change` of `released`, under which the M * N token-level problems of an (image, class) pair stop
            together, and so do all prompt-level problems.
        gradient: of both levels of `paper` with learned plans, see `transport_cost`.
        fast: the token level by `set_distances`, which keeps no (B, C, M, N, J, L) tensor, with its `budget_bytes` and
            `sizes`.

    Raises:
        ValueError: an option out of range, shapes that do not fit, or an empty token set.
        FloatingPointError: features that are not finite.
    """
    check_axes(x=(x, "BME"), r=(r, "BMJE"), y=(y, "CNE"), s=(s, "CNLE"), mask=(mask, "CNL"))
    paper = mode == "paper"
    check_choices(mode=(mode, SCORES), plan=(plan, PLANS), gradient=(gradient, GRADIENTS if paper else ("constant",)))
    stop = stop or ("marginal" if paper else "scaling_change")
    if plan == "uniform":
        gradient = "constant"
    x, y = (F.normalize(full_precision(v), dim=-1) for v in (x, y))

    def transport(cost: Tensor, cols: Tensor, together: int | None) -> tuple[Tensor, Tensor]:
        rows = cost.new_full((cost.shape[-2],), 1 / cost.shape[-2])
        if plan == "uniform":
            return (rows[:, None] * cols.unsqueeze(-2)).expand_as(cost), cost.new_zeros(())
        group, span = 1 if stop == "marginal" else together, 2 * (1 + beta)  # costs 1 - cosine lie in [0, 2]
        found = sinkhorn(cost, rows, cols, reg, max_iter, threshold, stop, group, span)
        return found.plan, found.iterations.to(cost.dtype).mean()

    if not paper:
        r, s = r.detach(), s.detach()

    T_mn = None
    if fast:  # token level
        settings = (reg, max_iter, threshold, stop, gradient, plan == "uniform")
        d, entropy, iterations = set_distances(r, s, mask, *settings, budget_bytes, sizes)
    else:
        r, s = (F.normalize(full_precision(v), dim=-1) for v in (r, s))
        cost = 1 - torch.einsum("bmje,cnle->bcmnjl", r, s)
        T_mn, iterations = transport(cost, uniform_mass(mask, s.dtype)[:, None], x.shape[1] * y.shape[1])
        d, entropy = transport_cost(cost, T_mn, reg, gradient), normalized(*entropies(T_mn)).mean()

    S = torch.einsum("bme,cne->bcmn", x, y)  # prompt level
    C = 1 - S + beta * (d if paper else 1 - d)
    T, steps = transport(C, C.new_full((C.shape[-1],), 1 / C.shape[-1]), None)
    logits = scale * (1 - transport_cost(C, T, reg, gradient) if paper else (T * S).sum((-2, -1)))
    return AlignLogits(logits, T, T_mn, entropy, normalized(*entropies(T)).mean(), torch.stack([iterations, steps]))


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
        fast = self.options.FAST or torch.compiler.is_exporting()
        found = align_logits(x, r, y, s, mask, scale, **self.settings, fast=fast, sizes=sizes)
        self.metrics = {"token_entropy": found.token_entropy, "prompt_entropy": found.prompt_entropy}
        self.metrics |= {"mode_similarity_image": mode_similarity(x), "mode_similarity_text": mode_similarity(y)}
        return found.logits


@TRAINER_REGISTRY.register()
class ALIGN(PromptTrainer):
    """Coupled multi-mode prompts (MaPLe's deep prompts, M = N of them) scored by two-level transport."""

    node = "ALIGN"
    cuts_phrases = True
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

    @classmethod
    def config_problems(cls, cfg) -> list[str]:
        found, options = super().config_problems(cfg), cfg.TRAINER.ALIGN
        if options.SCORE == "released" and options.GRADIENT != "constant":
            found.append(
                f"TRAINER.ALIGN.GRADIENT is {options.GRADIENT!r}, expected constant, the only one of SCORE released"
            )
        if options.MODE_BIAS and not options.COUPLED:
            found.append("TRAINER.ALIGN.MODE_BIAS is True, expected False without COUPLED")
        if options.COUPLED and options.VISION_PROMPT_NUMBER != options.TEXT_PROMPT_NUMBER:
            found.append(
                f"TRAINER.ALIGN.VISION_PROMPT_NUMBER is {options.VISION_PROMPT_NUMBER}, expected the "
                f"{options.TEXT_PROMPT_NUMBER} of TEXT_PROMPT_NUMBER with COUPLED"
            )
        return found

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
