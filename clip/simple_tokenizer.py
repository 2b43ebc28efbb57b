"""CLIP's byte-pair encoding.

Text is repaired (ftfy), unescaped (HTML), its white space collapsed, lower-cased and cut into words; the bytes of each
word become printable characters, and merges join them in the order of the merge list. A shorter vocabulary uses only
the first merges of the list: every text still encodes, into more tokens.
"""

from __future__ import annotations

import gzip
import html
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
VOCAB_SIZE = 49408
"""Entries of OpenAI's vocabulary: 256 bytes, 256 bytes that end a word, the merges, start and end of text."""
FIXED = 2 * 256 + 2
"""Entries of any vocabulary that are not merges."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
CACHED_WORDS = 65536


def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each of the 256 bytes, in the order of the vocabulary.

    Bytes that print as they are in Latin-1 come first and stand for themselves; the others take characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return table


def clean(text: str) -> str:
    """Repaired, unescaped (twice: `&amp;lt;` occurs on the web), with single spaces, lower-cased."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text.strip()).strip().lower()


class SimpleTokenizer:
    """Encoder and decoder between text and token ids.

    Args:
        vocab_size: entries, 514 to 49408; smaller than 49408 keeps only the first ``vocab_size - 514`` merges.

    Raises:
        ValueError: ``vocab_size`` out of range.
    """

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        if not FIXED <= vocab_size <= VOCAB_SIZE:
            raise ValueError(
                f"a vocabulary of {vocab_size} entries was asked for; possible are {FIXED} to {VOCAB_SIZE}"
            )
        self.vocab_size = vocab_size
        lines = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 1 + vocab_size - FIXED]]
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        characters = list(self.byte_encoder.values())
        entries = [*characters, *(c + WORD_END for c in characters), *("".join(pair) for pair in merges), START, END]
        self.encoder: dict[str, int] = {entry: i for i, entry in enumerate(entries)}
        self.decoder: dict[int, str] = {i: entry for entry, i in self.encoder.items()}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._word_ids = lru_cache(maxsize=CACHED_WORDS)(self._encode_word)

    @cached_property
    def start(self) -> int:
        """Id of the start-of-text token."""
        return self.encoder[START]

    @cached_property
    def end(self) -> int:
        """Id of the end-of-text token, the largest id."""
        return self.encoder[END]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end tokens."""
        return [i for word in WORDS.findall(clean(text)) for i in self._word_ids(word)]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids; a space follows each word, bytes that are not UTF-8 become the replacement character."""
        text = "".join(self.decoder[int(i)] for i in ids)
        raw = bytearray(self.byte_decoder[character] for character in text)
        return raw.decode("utf-8", errors="replace").replace(WORD_END, " ")

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in (START, END):
            return (self.encoder[word],)
        characters = [self.byte_encoder[byte] for byte in word.encode("utf-8")]
        pieces = [*characters[:-1], characters[-1] + WORD_END]
        while len(pieces) > 1:
            best = min(pairwise(pieces), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined, i = [], 0
            while i < len(pieces):
                if tuple(pieces[i : i + 2]) == best:
                    joined.append(pieces[i] + pieces[i + 1])
                    i += 2
                else:
                    joined.append(pieces[i])
                    i += 1
            pieces = joined
        return tuple(self.encoder[piece] for piece in pieces)


@lru_cache(maxsize=8)
def shared_tokenizer(vocab_size: int = VOCAB_SIZE) -> SimpleTokenizer:
    """The one tokenizer of this vocabulary size in the process; its word cache is shared."""
    return SimpleTokenizer(vocab_size)
