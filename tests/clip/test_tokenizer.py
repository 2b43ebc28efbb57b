"""The byte-pair encoding: identical to an independent package, and complete with any vocabulary."""

import random

import pytest
import torch

import clip
from clip.simple_tokenizer import SimpleTokenizer, bytes_to_unicode, shared_tokenizer

open_clip = pytest.importorskip("open_clip")

TEXT = (
    "a photo of the cat dog's won't they've I'm you'll she'd antidisestablishmentarianism zebra naïve café über "
    "Straße 東京 日本語 привет Ελληνικά עברית العربية हिन्दी ไทย 한국어 😀 👩‍👩‍👧 🇩🇪 ½ ² Ⅷ ﬁ İstanbul ǅ 1234567890 3.14 "
    "#tag @me &amp; &amp;lt; &eacute; &#39; Ã©tÃ© â€œquotedâ€\x9d ... !!! ?!? -- __init__ C++ \\n ' '' 's `` ~ | <| |>"
)
WORDS = TEXT.split(" ")
ALPHABETS = [(32, 127), (160, 383), (0x370, 0x530), (0x5D0, 0x6FF), (0x900, 0x97F), (0x2000, 0x2BFF), (0x4E00, 0x4FFF)]
ALPHABETS += [(0xAC00, 0xAD00), (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF), (0, 32), (0xFF00, 0xFFEF), (0xE000, 0xE010)]


def strings(count, seed=0):
    """Words, random characters of many scripts, white space of many kinds, and mixtures."""
    draw = random.Random(seed)
    spaces = [" ", "  ", "\t", "\n", "\u00a0", "\u2003", "\u3000", "\r\n", "\x1c", "\u200b", ""]
    for i in range(count):
        parts = []
        for _ in range(draw.randint(0, 8)):
            if i % 3 == 0 or draw.random() < 0.5:
                word = draw.choice(WORDS)
                parts.append(word.upper() if draw.random() < 0.2 else word)
            else:
                low, high = draw.choice(ALPHABETS)
                parts.append("".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 7))))
            parts.append(draw.choice(spaces))
        yield "".join(parts)


def test_four_thousand_strings_encode_as_elsewhere():
    theirs, ours = open_clip.tokenizer.SimpleTokenizer(), shared_tokenizer()
    lengths = 0
    for text in strings(4000):
        expected = theirs.encode(text)
        assert ours.encode(text) == expected, ascii(text)
        assert ours.decode(expected) == theirs.decode(expected), ascii(text)
        lengths += len(expected)
    assert lengths > 40000


def test_vocabularies_are_equal():
    theirs, ours = open_clip.tokenizer.SimpleTokenizer(), SimpleTokenizer()
    assert len(ours.encoder) == len(ours.decoder) == 49408
    # open_clip has other names for the start and the end token; these are OpenAI's.
    assert list(ours.encoder)[:-2] == list(theirs.encoder)[:-2]
    assert ours.encode("<|startoftext|>a<|endoftext|>") == [49406, 320, 49407]
    assert ours.decode([49406, 320, 49407]) == "<|startoftext|>a <|endoftext|>"
    assert len(bytes_to_unicode()) == len(set(bytes_to_unicode().values())) == 256


def test_tokenize_equals_open_clip():
    texts = [text[:60] for text in strings(200, seed=1)]
    assert torch.equal(clip.tokenize(texts, truncate=True), open_clip.tokenizer.SimpleTokenizer()(texts))
    one = clip.tokenize("a photo of a cat.")
    assert one.dtype == torch.int64
    assert one[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert one.shape == (1, 77)
    assert one[0, 8:].sum() == 0


def slow_bpe(word, merges):
    """Applies the merges one after the other, in order of the list."""
    pieces = [bytes_to_unicode()[b] for b in word.encode()]
    pieces[-1] += "</w>"
    for first, second in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (first, second):
                pieces[i : i + 2] = [first + second]
            i += 1
    return pieces


@pytest.mark.parametrize("vocab_size", [514, 600, 2000, 8192])
def test_cut_vocabularies_still_encode_every_text(vocab_size):
    whole, cut = shared_tokenizer(), SimpleTokenizer(vocab_size)
    assert (cut.start, cut.end) == (vocab_size - 2, vocab_size - 1)
    assert len(cut.encoder) == vocab_size
    for text in strings(300, seed=2):
        ids = cut.encode(text)
        assert all(0 <= i < vocab_size - 2 for i in ids)
        assert cut.decode(ids) == whole.decode(whole.encode(text))


def test_a_cut_vocabulary_uses_the_first_merges():
    cut = SimpleTokenizer(2000)
    merges = sorted(cut.ranks, key=cut.ranks.get)
    assert len(merges) == 2000 - 514
    for word in ["photograph", "cat", "zebra", "naïve", "東京", "a", "butterflies", "😀"]:
        assert [cut.decoder[i] for i in cut.encode(word)] == slow_bpe(word, merges)
    first = 2000 - 2
    whole = shared_tokenizer()
    shared = [text for text in ("the", "of a", "in") if max(whole.encode(text)) < first]
    assert shared
    for text in shared:
        assert cut.encode(text) == whole.encode(text)


def test_too_long_texts_raise_or_are_cut():
    text = "cat " * 20
    with pytest.raises(RuntimeError, match=r"cat cat.*22 tokens.*context length 10"):
        clip.tokenize(["a dog", text], context_length=10)
    cut = clip.tokenize(text, context_length=10, truncate=True)
    assert cut[0].tolist() == [49406, *[2368] * 8, 49407]
    exact = clip.tokenize("cat " * 8, context_length=10)
    assert torch.equal(exact, cut)


def test_bad_numbers_are_named():
    for size in (513, 49409):
        with pytest.raises(ValueError, match=str(size)):
            clip.tokenize("a", vocab_size=size)
    with pytest.raises(ValueError, match="context_length is 1"):
        clip.tokenize("a", context_length=1)
    assert clip.tokenize([]).shape == (0, 77)


def test_the_module_keeps_one_tokenizer():
    from clip import clip as module

    assert module._tokenizer is module._tokenizer
    assert module._tokenizer.decode(module._tokenizer.encode("Hello, World!")) == "hello , world ! "
    with pytest.raises(AttributeError, match="nothing_here"):
        module.nothing_here  # noqa: B018
