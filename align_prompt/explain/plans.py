"""Transport plans of ALIGN, PLOT and PLOT++ for one picture and one class: those that the score itself uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align_prompt.model import Model
from clip import Encoded
from trainers.align import TwoLevelTransport, align_logits
from trainers.parts.set_transport import SetTransport
from trainers.plot import plot_logits

LEARNED = "[v{}]"  # a context vector, in the place of its placeholder


class TokenPlans(NamedTuple):
    """Both levels of ALIGN for one picture and one class.

    Attributes:
        tokens: (M, N, J, L) plans between patches (the first P of J, then visual prompt vectors) and tokens of the
            sentences; each sums to 1, and is 0 where `mask` is false.
        mask: (N, L) bool, tokens that take part.
        prompts: (M, N) plan between the prompts, sums to 1.
        logit: of the class.
    """

    tokens: Tensor
    mask: Tensor
    prompts: Tensor
    logit: float

    def relative(self) -> Tensor:
        """(M, N, J, L) plans divided by the uniform plan: 1 = transport prefers nothing; NaN beside the sentences."""
        uniform = 1 / (self.tokens.shape[2] * self.mask.sum(-1))  # (N,)
        return torch.where(self.mask[None, :, None], self.tokens / uniform[:, None, None], torch.nan)


class SetPlan(NamedTuple):
    """Plan (M, N) of PLOT (M patches or positions) or PLOT++ (M visual prompts) for one picture and one class.

    `local` says that rows are places in the picture. `score` is what transport adds to the logit.
    """

    plan: Tensor
    score: float
    local: bool

    def relative(self) -> Tensor:
        """(M, N) plan divided by the uniform one."""
        return self.plan * self.plan.numel()


def plans_of(model: Model, encoded: Encoded, text: Encoded, place: int) -> TokenPlans | SetPlan:
    """The plans that the score of one picture and class number `place` is made with.

    Args:
        encoded: the picture under all visual modes, M rows.
        text: all classes.

    Raises:
        ValueError: the method has no transport, or there is no such class.
    """
    transport = getattr(model.trainer, "transport", None)
    if not 0 <= place < len(model.classnames):
        raise ValueError(f"class {place} is asked for, expected 0 to {len(model.classnames) - 1}")
    scale = model.prompted.clip.logit_scale.exp()
    if isinstance(transport, TwoLevelTransport):
        return _token_plans(transport, encoded, text, scale, place)
    if isinstance(transport, SetTransport):
        return _set_plan(model, transport, encoded, text, place)
    raise ValueError(f"{model.method} has no transport plans: ALIGN, ALIGNLAMM, PLOT and PLOTPP have")


@torch.no_grad()
def _token_plans(
    transport: TwoLevelTransport, encoded: Encoded, text: Encoded, scale: Tensor, place: int
) -> TokenPlans:
    x, r, y, s = transport.features(encoded, text)
    mask = transport.text_mask(s.shape[2])
    if transport.options.SCORE == "paper":  # every class stops by itself; in the released form all stop together
        y, s, mask, place = y[place, None], s[place, None], mask[place, None], 0
    found = align_logits(x, r, y, s, mask, scale, **transport.settings)
    assert found.token_plans is not None  # of the plain form
    tokens, prompts = (plan[0, place].cpu() for plan in (found.token_plans, found.prompt_plan))
    return TokenPlans(tokens, mask[place].cpu(), prompts, float(found.logits[0, place]))


@torch.no_grad()
def _set_plan(model: Model, transport: SetTransport, encoded: Encoded, text: Encoded, place: int) -> SetPlan:
    kept: list[tuple[Tensor, Tensor]] = []
    before: Callable[..., tuple[Tensor, Tensor]] | None = transport.definition

    def definition(*arguments: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        kept.append(plot_logits(*arguments, **settings))
        return kept[-1]

    transport.definition = definition
    try:
        model.prompted.compare(encoded, text)
    finally:
        transport.definition = before
    scores, plan = kept[-1]
    local = type(model.trainer).local_features
    return SetPlan(plan[0, place].cpu(), float(scores[0, place]), local)


def token_names(model: Model, place: int) -> list[list[str]]:
    """Tokens of all N sentences of a class, those of learned vectors as [v1], [v2], ...; as long as the sentences."""
    learner = model.prompted.learner
    ids, prompts = learner.text_prompts()
    modes = learner.text_modes
    words = model.prompted.clip.words
    label = learner.label_tokens()
    rows = []
    for row in range(place * modes, (place + 1) * modes):
        end = int(words.ends(ids[row, None])[0])
        names = [words.decode(token).strip() for token in ids[row, : end + 1].tolist()]
        for found, form in ((prompts, LEARNED), (label, "[name {}]")):
            if found is None or found.slots is None:
                continue
            slots = found.slots if found.slots.dim() == 1 else found.slots[row]
            for number, slot in enumerate(slots.tolist(), start=1):
                if slot < end:
                    names[slot] = form.format(number)
        rows.append(names)
    return rows
