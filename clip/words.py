"""Text of a model in and out of token ids: tokenizing, where sentences begin and end, and what a token spells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip.simple_tokenizer import VOCAB_SIZE, shared_tokenizer

PLACEHOLDER = "X"
"""A word of one token, in the place of vectors."""


class TextTooLong(ValueError, RuntimeError):
    """More tokens than the text tower takes; a RuntimeError too, as OpenAI's `tokenize` raises one."""


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    """Token ids of texts, between start and end token, padded with zeros.

    Args:
        texts: one text or several.
        context_length: columns of the result.
        truncate: cut texts that are too long (the last id stays the end token) instead of raising.
        vocab_size: entries of the model's vocabulary; its last two are the start and the end token.

    Returns:
        (n, context_length) int64.

    Raises:
        TextTooLong: a text is longer than ``context_length`` and ``truncate`` is false.
        ValueError: ``vocab_size`` or ``context_length`` out of range.
    """
    if context_length < 2:
        raise ValueError(f"context_length is {context_length}; start and end token alone need 2")
    tokenizer = shared_tokenizer(vocab_size)
    texts = [texts] if isinstance(texts, str) else texts
    rows = [[tokenizer.start, *tokenizer.encode(text), tokenizer.end] for text in texts]
    return padded(rows, texts, context_length, truncate, tail=1)


def padded(
    rows: Sequence[list[int]], texts: Sequence[str], length: int, truncate: bool, tail: int, pad: int = 0
) -> Tensor:
    """Rows of token ids as (n, length) int64, filled up with `pad`; what is cut keeps its last `tail` ids.

    Raises:
        TextTooLong: a row is longer and `truncate` is false; the message shows its text.
    """
    out = torch.full((len(rows), length), pad, dtype=torch.int64)
    long = [(len(ids), text) for ids, text in zip(rows, texts) if len(ids) > length]
    if long and not truncate:
        (tokens, text), more = long[0], f"; {len(long) - 1} more are too long" * (len(long) > 1)
        raise TextTooLong(
            f"Input {text[:80]!r}{'...' * (len(text) > 80)} has {tokens} tokens, too long for context length {length}"
            f"{more}: shorten the class name (classnames in dataset.yaml), the template (INPUT.TEMPLATE), CTX_INIT or "
            "N_CTX"
        )
    for number, ids in enumerate(rows):
        kept = ids if len(ids) <= length else [*ids[: length - tail], *ids[len(ids) - tail :]]
        out[number, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return out


class Words:
    """Tokens of a model: here CLIP's byte-pair encoding, of others :class:`clip.towers.words.TowerWords`.

    Args:
        context_length: most tokens of a text, start and end included.
        vocab_size: entries of the vocabulary.

    Attributes:
        first: position of the first token of a text, behind what starts it.
    """

    first = 1

    def __init__(self, context_length: int, vocab_size: int) -> None:
        self.context_length, self.vocab_size = context_length, vocab_size

    def tokenize(self, texts: Sequence[str], truncate: bool = False, room: int = 0) -> Tensor:
        """Token ids (n, context_length) of texts, with `room` placeholders before the words of each.

        Raises:
            TextTooLong: a text does not fit and `truncate` is false.
        """
        before = f"{PLACEHOLDER} " * room
        return tokenize([before + text for text in texts], self.context_length, truncate, self.vocab_size)

    def ids(self, text: str, inside: bool = False) -> list[int]:
        """Token ids of `text` alone, as a sentence begins with it, or as it follows other words (`inside`)."""
        found = tokenize([text], self.context_length, vocab_size=self.vocab_size)
        return found[0, 1 : int(self.ends(found)[0])].tolist()

    def ends(self, ids: Tensor) -> Tensor:
        """(n,) position of the end-of-text token of each row of `ids` (n, L)."""
        return ids.argmax(dim=1)

    def decode(self, token: int) -> str:
        """Text of one token."""
        return shared_tokenizer(self.vocab_size).decode([token])
