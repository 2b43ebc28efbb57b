"""Captions of concepts: a term that is true of the concept, in a template.

A term may be true of many concepts ("a bird"). `Captions.truth` says of which, so that a contrastive loss need not
treat a true caption of a picture as a negative.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from . import benchmark, concepts

TEMPLATES = (
    "a picture of a {}.",
    "a photo of a {}.",
    "a picture of a {}.",
    "a photo of a {}.",
    "a picture of the {}.",
    "a photo of the {}.",
    "a picture of {}.",
    "a photo of {}",
    "an emoji of a {}.",
    "an emoji of {}",
    "a drawing of a {}.",
    "a drawing of {}",
    "an icon of a {}.",
    "an icon of {}",
    "an image of a {}.",
    "a sketch of a {}.",
    "an illustration of a {}.",
    "a cartoon of a {}.",
    "a symbol of a {}",
    "this is a {}.",
    "the {}.",
    "a {}.",
    "{}.",
    "{}",
)
WITH_KEYWORD = ("{}, {}", "a picture of a {}, {}.", "a photo of a {}, {}.", "{} ({})", "a {} and {}")
WITH_KIND = ("{}, a {}", "a picture of a {}, a kind of {}.", "a photo of a {}, a type of {}.", "a {}, {}", "{}: {}")

# share of each kind of term at full complexity; what a concept lacks falls to its name
NAME, FINE, GROUP, KEYWORD, SUBGROUP = range(5)
SHARES = (0.50, 0.14, 0.20, 0.09, 0.07)
LONG_SHARE = 0.2  # captions of a name that also give a keyword or the kind
PLAIN_SHARE = 0.15  # names and kinds without a template, at full complexity

_FLIP_WORDS = re.compile(
    r"\b(left|right|clockwise|counterclockwise|o’clock|thirty|quarter|crescent|gibbous|back|button|sign|mark|arrow|up|down)\b"
)
_FLIP_SUBGROUPS = frozenset(
    ("arrow", "time", "math", "punctuation", "currency", "other-symbol", "av-symbol", "transport-sign", "warning")
    + ("zodiac", "religion", "gender", "hand-single-finger", "hand-fingers-partial")
)


def subgroup_phrase(subgroup: str) -> str:
    """Words of a Unicode subgroup: 'animal-bird' -> 'animal bird', 'face-smiling' -> 'smiling face'."""
    head, _, tail = subgroup.partition("-")
    if tail and head in ("face", "food", "place", "person", "plant", "transport"):
        return f"{tail.replace('-', ' ')} {head}"
    return subgroup.replace("-", " ")


def is_upright(name: str, subgroup: str = "") -> bool:
    """True if a mirror image or a turn would change what is shown: arrows, clocks, letters, signs."""
    return subgroup in _FLIP_SUBGROUPS or _FLIP_WORDS.search(name) is not None


class Captions:
    """Random captions for concepts, and which concepts each caption is true of.

    Args:
        extra: names of further drawings that are not emoji; they get the ids after the emoji concepts.

    Attributes:
        terms: every term.
        truth: (terms, concepts) bool, whether a term is true of a concept.
        upright: (concepts,) bool, see `is_upright`.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        emoji = concepts()
        self.count = len(emoji) + len(extra)
        self._ids: dict[str, int] = {}
        members: list[set[int]] = []
        self._terms: list[tuple[list[int], ...]] = []  # per concept, per kind
        classes = benchmark()
        groups = _classes_of(classes["groups"])
        fine: dict[str, list[str]] = {}
        for table in classes["fine"].values():
            for code, names in _classes_of(table).items():
                fine.setdefault(code, []).extend(names)
        for index, concept in enumerate(emoji):
            other = [name for name in dict.fromkeys(fine.get(concept.code, [])) if name != concept.label]
            tags = [tag for tag in concept.tags if tag != concept.label and len(tag) > 1]
            kinds = ([concept.label], other, groups.get(concept.code, []), tags, [subgroup_phrase(concept.subgroup)])
            self._add(index, kinds, members)
        for index, name in enumerate(extra, start=len(emoji)):
            self._add(index, ([name], [], [], [], []), members)
        upright = [is_upright(concept.label, concept.subgroup) for concept in emoji]
        self.upright = torch.tensor(upright + [is_upright(name) for name in extra])
        self.terms = tuple(self._ids)
        self.truth = torch.zeros(len(self.terms), self.count, dtype=torch.bool)
        for term, ids in enumerate(members):
            self.truth[term, sorted(ids)] = True

    def _add(self, concept: int, kinds: Sequence[Sequence[str]], members: list[set[int]]) -> None:
        rows = []
        for names in kinds:
            terms = []
            for name in names:
                term = self._ids.setdefault(name, len(self._ids))
                if term == len(members):
                    members.append(set())
                members[term].add(concept)
                terms.append(term)
            rows.append(terms)
        self._terms.append(tuple(rows))

    def draw(self, ids: Sequence[int], complexity: float, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """One caption for each concept.

        Args:
            ids: concept ids.
            complexity: 0 gives bare names, 1 every kind of term and template.
            generator: of all random numbers.

        Returns:
            Captions, and term ids (B,) int64 for `truth`.
        """
        numbers = torch.rand(len(ids), 5, generator=generator).tolist()
        drawn = [self._one(concept, complexity, *row) for concept, row in zip(ids, numbers)]
        return [caption for caption, _ in drawn], torch.tensor([term for _, term in drawn])

    def _one(
        self, concept: int, complexity: float, kind_: float, term_: float, long_: float, form: float, other_: float
    ):
        kinds = self._terms[concept]
        kind = NAME
        for candidate in range(FINE, len(SHARES)):
            kind_ -= SHARES[candidate] * complexity
            if kind_ < 0:
                kind = candidate if kinds[candidate] else NAME
                break
        term = _pick(kinds[kind], term_)
        text = self.terms[term]
        if other_ > complexity * (1 - PLAIN_SHARE):
            return text, term
        if kind in (NAME, FINE) and long_ < LONG_SHARE * complexity:
            further, templates = (
                (KEYWORD, WITH_KEYWORD) if long_ < 0.5 * LONG_SHARE * complexity else (GROUP, WITH_KIND)
            )
            if kinds[further]:
                return _pick(templates, form).format(text, self.terms[_pick(kinds[further], term_)]), term
        return _pick(TEMPLATES, form).format(text), term


def _pick(values: Sequence, position: float):
    """Element at a position in [0, 1)."""
    return values[int(position * len(values))]


def _classes_of(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """Code -> names of the classes that hold it."""
    result: dict[str, list[str]] = {}
    for name, codes in table.items():
        for code in codes:
            result.setdefault(code, []).append(name)
    return result
