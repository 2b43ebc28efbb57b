"""Tokenizers of transformers for backbones with another vocabulary than CLIP's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from clip.archive import CheckpointError
from clip.words import PLACEHOLDER, Words, padded


class TowerWords(Words):
    """Tokens of a tokenizer of transformers.

    Args:
        tokenizer: of transformers.
        context_length: most tokens of a text; rows are filled up behind the text.
        vocab_size: entries of the model's table.
        clean: applied to every text first.
        strip_sep: the token that ends a text becomes padding (CLIPA).

    Raises:
        CheckpointError: a tokenizer without padding, or with more tokens than the model.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_length: int,
        vocab_size: int,
        clean: Callable[[str], str] = str.strip,
        strip_sep: bool = False,
    ) -> None:
        super().__init__(context_length, vocab_size)
        self.tokenizer, self.clean = tokenizer, clean
        self.pad = 0 if strip_sep else tokenizer.pad_token_id
        if self.pad is None:
            raise CheckpointError("its tokenizer has no padding token")
        word, whole = self._plain(PLACEHOLDER), tokenizer(clean(PLACEHOLDER)).input_ids
        self.word = word
        self.first = next((n for n in range(len(whole)) if whole[n : n + len(word)] == word), 0)
        self.start, self.end = whole[: self.first], whole[self.first + len(word) :]
        if strip_sep:
            self.end = [self.pad if token == tokenizer.sep_token_id else token for token in self.end]
        largest = max([*whole, self.pad])
        if largest >= vocab_size:
            raise CheckpointError(
                f"its tokenizer gives the token {largest}, but the model has a table of {vocab_size}: is it another's?"
            )

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(self.clean(text), add_special_tokens=False).input_ids

    def tokenize(self, texts: Sequence[str], truncate: bool = False, room: int = 0) -> Tensor:
        rows = [[*self.start, *self.word[:1] * room, *self.ids(text, room > 0), *self.end] for text in texts]
        return padded(rows, texts, self.context_length, truncate, len(self.end), self.pad)

    def ids(self, text: str, inside: bool = False) -> list[int]:
        if not inside:
            return self._plain(text)
        joined = self._plain(f"{PLACEHOLDER} {text}")
        return joined[len(self.word) :] if joined[: len(self.word)] == self.word else self._plain(text)

    def ends(self, ids: Tensor) -> Tensor:
        """(n,) position of the first token behind the words; of a row that is full without one, its length."""
        over = ids == (self.end[0] if self.end else self.pad)
        return over.int().argmax(dim=1).where(over.any(dim=1), ids.shape[1])

    def decode(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token)).replace("▁", " ")
