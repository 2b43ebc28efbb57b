"""Everything the text tower must know of the values of ids and slots, read once and kept while they stay the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from clip.prompts import check_prompt_index, check_slots
from clip.text_layout import GROUP_COST, Layout, text_layout, whole_layout

Result = TypeVar("Result")


class TextPlan(NamedTuple):
    """Plan for encoding a batch of sentences; tensors on the device of the model.

    Attributes:
        layout: what is computed.
        length: positions up to the longest end-of-text token.
        stop: (rows,) position of each row's end-of-text token.
        slots, label_slots: checked positions of prompts and label tokens, or None.
        leaders: (K,) rows whose first positions are shared.
        leader: (rows,) index into `leaders`.
        rows: (k,) rows of every bucket of the layout.
        order: (rows,) where each row stands in the output of the buckets, one after the other.
        places: (rows, length) of `Layout.places`, None where features of positions are not wanted.
    """

    layout: Layout
    length: int
    stop: Tensor
    slots: Tensor | None
    label_slots: Tensor | None
    leaders: Tensor
    leader: Tensor
    rows: list[Tensor]
    order: Tensor
    places: Tensor | None


class PlanInputs(NamedTuple):
    """Inputs that a plan depends on besides ids, slots and prompt numbers.

    Attributes:
        device: of the model.
        vectors, words: vectors per row of prompts and of label tokens; None = there are none.
        kinds: prompts that layers by row hold; 0 = all rows have the same vectors.
        tokens: features of positions are wanted.
        apart: nothing may be shared between rows, since every sentence drops out on its own.
        whole: nothing is shared and all sentences go together, for recordings (`clip.record`).
    """

    device: torch.device
    vectors: int | None
    words: int | None
    kinds: int
    tokens: bool
    apart: bool
    whole: bool


def make_plan(
    cut: Callable[[Tensor], tuple[Tensor, Tensor, list[int]]],
    ids: Tensor,
    slots: Tensor | None,
    prompt_index: Tensor | None,
    label_slots: Tensor | None,
    inputs: PlanInputs,
) -> TextPlan:
    """Checks of values and the layout: the only part of a text forward that waits for the device.

    Args:
        cut: ids -> ids up to the longest end-of-text position, that position per row, and the same as numbers.
        ids, slots, prompt_index, label_slots: see `CLIP.encode_text`.

    Raises:
        ValueError: values that do not fit.
    """
    ids, stop, ends = cut(ids.cpu())
    slots, prompt_index, label_slots = (None if x is None else x.cpu() for x in (slots, prompt_index, label_slots))
    rows, length = ids.shape
    if prompt_index is not None:
        check_prompt_index(prompt_index, max(1, inputs.kinds), "text prompts")
    if inputs.vectors is not None:
        slots = check_slots(slots, rows, inputs.vectors, stop, "text prompts")
    if inputs.words is not None:
        inside = torch.full_like(stop, length)
        label_slots = check_slots(label_slots, rows, inputs.words, inside, "label tokens")
    same = (
        prompt_index if inputs.kinds else stop.new_zeros(rows)
    )  # without vectors by row, all rows have the same prompt
    cost = GROUP_COST[inputs.device.type == "cpu"]
    if inputs.whole:
        layout = whole_layout(ends)
    else:
        layout = text_layout(ids, ends, None if inputs.apart else same, slots, label_slots, cost)
    parts = [torch.tensor(bucket.rows, dtype=torch.int64) for bucket in layout.buckets]
    order = torch.empty(rows, dtype=torch.int64)
    order[torch.cat(parts)] = torch.arange(sum(map(len, parts)))

    def there(value: Tensor) -> Tensor:
        return value.to(inputs.device, non_blocking=True)

    return TextPlan(
        layout,
        length,
        there(stop),
        None if slots is None else there(slots),
        None if label_slots is None else there(label_slots),
        there(layout.leaders),
        there(layout.leader),
        [there(part) for part in parts],
        there(order[layout.duplicate_of]),
        there(layout.places(length)) if inputs.tokens else None,
    )


class Remembered(Generic[Result]):
    """The last results of functions of tensors, found again by the identity of the tensors and not by their values.

    A tensor that was written to since is another one, and so is a copy.

    Args:
        size: results that are kept.
    """

    def __init__(self, size: int = 8):
        self.size = size
        self.known: dict[Hashable, tuple[tuple[Tensor | None, ...], Result]] = {}

    def __call__(self, make: Callable[[], Result], tensors: tuple[Tensor | None, ...], *others: Hashable) -> Result:
        """`make()`, or what it gave when it was last called with these tensors and values."""
        # changes of inference tensors are not counted, and tensors of a traced graph are none
        if torch.compiler.is_compiling() or any(x is not None and x.is_inference() for x in tensors):
            return make()
        key = (*(None if x is None else (id(x), x._version, x.device) for x in tensors), *others)
        found = self.known.pop(key, None)
        result = make() if found is None else found[1]
        self.known[key] = tensors, result  # the tensors live as long as the entry, so no other can get their id
        if len(self.known) > self.size:
            self.known.pop(next(iter(self.known)))
        return result

    def __deepcopy__(self, _memo: dict) -> Remembered[Result]:
        return Remembered(self.size)

    def __reduce__(self) -> tuple:
        return Remembered, (self.size,)
