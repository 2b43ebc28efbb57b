"""Layout of a batch of sentences for the text tower, so that nothing is computed twice or in vain.

The tower is causal: a position sees only itself and what is before it. So, exactly,

- nothing behind an end-of-text token is computed, and sentences of similar length go together;
- the first positions of sentences with the same prompt, up to the first token in which they differ (the start token,
  the context and the words of a template), have the same keys, values and outputs in every block, deep prompts
  included: they are computed once per prompt, the prefix, and every sentence attends to them;
- sentences that are equal are computed once.

All of it is decided on the host, from token ids and slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# What one more group of sentences costs, in token positions: matrices that are smaller are less efficient.
GROUP_COST = {True: 256, False: 8192}  # on the CPU, on other devices


class Bucket(NamedTuple):
    """Sentences that are computed together.

    Attributes:
        rows: their numbers.
        prefix: positions that are not computed because the sentence's leader has them; 0 = none.
        end: last position that is computed.
    """

    rows: list[int]
    prefix: int
    end: int


class Layout(NamedTuple):
    """Computation plan of a batch.

    Attributes:
        buckets: every different sentence is in one of them.
        leaders: (K,) one sentence of every prompt that is shared, of which the first `prefix` positions are computed.
        prefix: 0 = nothing is shared.
        leader: (rows,) index into `leaders` of every sentence; without meaning where its bucket has no prefix.
        duplicate_of: (rows,) first sentence that equals it; itself when it is the first.
    """

    buckets: list[Bucket]
    leaders: Tensor
    prefix: int
    leader: Tensor
    duplicate_of: Tensor

    @property
    def positions(self) -> int:
        """Token positions that are computed."""
        return self.prefix * len(self.leaders) + sum(len(p.rows) * (p.end + 1 - p.prefix) for p in self.buckets)

    def places(self, length: int) -> Tensor:
        """(rows, length): where each position's result stands.

        Results are the positions of the prefix, leader after leader, then those of the buckets, row after row, then one
        that stands for positions without meaning.
        """
        places = torch.full((len(self.duplicate_of), length), self.positions)
        start = self.prefix * len(self.leaders)
        for bucket in self.buckets:
            rows, width = torch.tensor(bucket.rows), bucket.end + 1 - bucket.prefix
            own = start + torch.arange(len(rows) * width).view(-1, width)
            places[rows, bucket.prefix : bucket.end + 1] = own
            places[rows, : bucket.prefix] = self.leader[rows, None] * self.prefix + torch.arange(bucket.prefix)
            start += own.numel()
        return places[self.duplicate_of]


def length_groups(ends: Sequence[int], group_cost: int) -> list[tuple[list[int], int]]:
    """Splits sentences into groups of similar length so that the number of computed positions is smallest.

    Every group computes (its longest end + 1) positions per sentence and `group_cost` positions once. The best split of
    the sorted lengths is found by dynamic programming over the distinct ones.

    Args:
        ends: position of the end-of-text token of each sentence.
        group_cost: positions one more group costs.

    Returns:
        (indices of the sentences, longest end) per group, short sentences first; every sentence is in one group.
    """
    members: dict[int, list[int]] = {}
    for row, end in enumerate(ends):
        members.setdefault(end, []).append(row)
    lengths = sorted(members)
    best, first = [0], []  # cost of the i shortest lengths; where the last of their groups starts
    for stop, end in enumerate(lengths):
        rows, choices = 0, []
        for start in range(stop, -1, -1):
            rows += len(members[lengths[start]])
            choices.append((best[start] + rows * (end + 1) + group_cost, start))
        cost, start = min(choices)
        best.append(cost)
        first.append(start)
    groups, stop = [], len(lengths)
    while stop > 0:
        start = first[stop - 1]
        groups.append(([row for end in lengths[start:stop] for row in members[end]], lengths[stop - 1]))
        stop = start
    return groups[::-1]


def text_layout(
    ids: Tensor,
    ends: Sequence[int],
    prompt_index: Tensor | None,
    slots: Tensor | None,
    labels: Tensor | None,
    group_cost: int,
) -> Layout:
    """The cheapest way to compute a batch of sentences; all tensors on the host.

    Args:
        ids: (rows, L) token ids.
        ends: position of the end-of-text token of each row.
        prompt_index: (rows,) rows of equal numbers have the same prompt vectors; None = none are known to.
        slots: (n,) or (rows, n) positions of the prompt vectors; None = there are none.
        labels: (q,) or (rows, q) positions of vectors that belong to the row alone, or None.
        group_cost: positions that one more group of sentences costs, and the prefix too.

    Returns:
        The layout. A prefix is shared only where it holds all the prompt vectors of its sentences and ends before
        their label vectors and their end-of-text tokens.
    """
    rows = len(ids)
    duplicate_of = torch.arange(rows)
    if prompt_index is None:
        return Layout(
            _buckets(range(rows), ends, [0] * rows, group_cost)[0],
            duplicate_of[:0],
            0,
            torch.zeros_like(duplicate_of),
            duplicate_of,
        )
    groups, leader = prompt_index.unique(return_inverse=True)
    leaders = torch.full_like(groups, rows).scatter_reduce(0, leader, duplicate_of, "amin")
    same = _same_slots(slots, leaders[leader])
    if labels is None:
        duplicate_of = _duplicates(ids, ends, leader, same)
    chosen = (duplicate_of == torch.arange(rows)).nonzero().flatten().tolist()
    length, least = _common(ids, ends, leaders, leader, slots, same, labels)
    shared = length > 0  # the vectors of other prompts may stand behind every prefix
    prefixes = [length * 0]
    if bool(shared.any()):
        prefixes.append(length)
        shortest = int(length[shared].min())
        if least <= shortest:
            prefixes.append(length.clamp(max=shortest))  # fewer groups
    options: list[tuple[int, list[Bucket], int]] = []
    for prefix in prefixes:
        own = prefix[leader].tolist()
        buckets, cost = _buckets(chosen, ends, own, group_cost)
        longest = int(prefix.max())
        options.append((cost + (longest * int(shared.sum()) + group_cost if longest else 0), buckets, longest))
    _, buckets, longest = min(options, key=lambda option: option[0])
    return Layout(buckets, leaders[shared], longest, (shared.cumsum(0) - 1).clamp(min=0)[leader], duplicate_of)


def whole_layout(ends: Sequence[int]) -> Layout:
    """The plan that computes sentences that end at `ends` one by one: row by row, sharing nothing."""
    rows = torch.arange(len(ends))
    return Layout([Bucket(rows.tolist(), 0, max(ends))], rows[:0], 0, torch.zeros_like(rows), rows)


def _buckets(
    rows: Sequence[int], ends: Sequence[int], prefix: Sequence[int], group_cost: int
) -> tuple[list[Bucket], int]:
    """Groups of the sentences `rows` of equal prefix and similar length, and what they cost."""
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(prefix[row], []).append(row)
    buckets = []
    for size, some in sorted(members.items()):
        for group, end in length_groups([ends[row] for row in some], group_cost):
            buckets.append(Bucket([some[k] for k in group], size, end))
    return buckets, sum(len(p.rows) * (p.end + 1 - p.prefix) + group_cost for p in buckets)


def _same_slots(slots: Tensor | None, leader: Tensor) -> Tensor:
    """(rows,) bool: the prompt vectors of a row stand where those of its leader, given by row, stand."""
    if slots is None or slots.dim() == 1:
        return torch.ones(len(leader), dtype=torch.bool)
    return (slots == slots[leader]).all(1)


def _duplicates(ids: Tensor, ends: Sequence[int], leader: Tensor, same: Tensor) -> Tensor:
    """(rows,) first row with the same prompt and the same tokens up to the end; slots that differ are never equal."""
    first: dict[tuple, int] = {}
    keys = zip(leader.tolist(), same.tolist(), ids.tolist(), ends)
    return torch.tensor(
        [
            first.setdefault((prompt_index, None if known else row, *tokens[: end + 1]), row)
            for row, (prompt_index, known, tokens, end) in enumerate(keys)
        ]
    )


def _common(
    ids: Tensor,
    ends: Sequence[int],
    leaders: Tensor,
    leader: Tensor,
    slots: Tensor | None,
    same: Tensor,
    labels: Tensor | None,
) -> tuple[Tensor, int]:
    """(K,) first positions that all sentences of a prompt share, and how many hold the vectors of all that share some.

    The former is 0 where a prompt's vectors do not all stand in them.
    """
    length = (ids == ids[leaders[leader]]).cumprod(1).sum(1).minimum(torch.tensor(ends))  # (rows,)
    if labels is not None and labels.shape[-1]:
        length = length.minimum(labels.min(-1).values)
    length = torch.where(same, length, 0)
    smallest = torch.full_like(leaders, ids.shape[1]).scatter_reduce(0, leader, length, "amin")
    if slots is None or not slots.shape[-1]:
        return smallest, 0
    least = slots.max(-1).values.expand(len(ids))[leaders] + 1
    inside = least <= smallest
    return torch.where(inside, smallest, 0), int(torch.where(inside, least, 0).max())
