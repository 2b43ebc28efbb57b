"""Conversations in LLaVA's layout: what is read, refused, and marked as an answer."""

import json
import random
from functools import partial

import pytest
import torch
from llava_models import PATCHES, SIDE, TURNS, record, tiny_llava, write_records
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dense.llava import model
from dense.llava.data import (
    IGNORED,
    IMAGE,
    Conversations,
    Turn,
    Wording,
    encode,
    merged,
    pad,
    picture_of,
    read_conversations,
    shuffled,
)

TEXTS = [text for turn in TURNS for text in turn]


def messages(*pairs):
    return [{"from": role, "value": value} for role, value in pairs]


def test_records_are_read(tmp_path):
    (found,) = read_conversations(write_records(tmp_path, record()), tmp_path)
    assert found.turns == TURNS
    assert found.image == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "b.png"}, r"picture .*b\.png of record 1 of .*\(id '7'\) is missing"),
        ({"image": None}, r"names no picture \(image is None\)"),
        ({"conversations": None}, "has no conversations"),
        ({"conversations": []}, "has no conversations"),
        ({"conversations": messages(("gpt", "<image> a"), ("human", "b"))}, r"\['gpt', 'human'\], expected human and"),
        ({"conversations": messages(("human", "<image>"), ("assistant", "b"))}, "'assistant'"),
        ({"conversations": messages(("human", "<image> a"))}, r"\['human'\]"),
        ({"conversations": messages(("human", "<image> a"), ("gpt", " "))}, "without text"),
        ({"conversations": messages(("human", "a"), ("gpt", "b"))}, "has 0 <image>"),
        ({"conversations": messages(("human", "<image> <image>"), ("gpt", "b"))}, "has 2 <image>"),
        ({"conversations": messages(("human", "a"), ("gpt", "<image> b"))}, "has 1 <image>, 0 of them in the first"),
    ],
)
def test_bad_records_give_one_clear_error(tmp_path, changes, message):
    file = write_records(tmp_path, record(), record(**changes))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_conversations(file, tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "[3]", '{"id": 1'])
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected|record 0|delimiter"):
        read_conversations(tmp_path / "x.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*y\.json"):
        read_conversations(tmp_path / "y.json", tmp_path)


def byte_tokenizer():
    """A byte-level BPE, whose tokens carry the space before a word."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], show_progress=False)
    plain.train_from_iterator([*TEXTS, "USER: ASSISTANT:"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return model.with_image_token(tokenizer, LlamaForCausalLM(config))


@pytest.mark.parametrize("kind", ["words", "bytes"])
@pytest.mark.parametrize(
    "wording", [Wording(), Wording("<|user|>\n{}\n<|answer|>\n", "Be brief."), Wording("Q: {} A:", "Be brief.\n")]
)
def test_answers_alone_are_labels(kind, wording):
    tokenizer = byte_tokenizer() if kind == "bytes" else tiny_llava()[1]
    found = encode(tokenizer, PATCHES, wording, 500, TURNS)
    assert found.ids.count(tokenizer.convert_tokens_to_ids(IMAGE)) == PATCHES
    answers, last = [], IGNORED
    for token, label in zip(found.ids, found.labels, strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            answers = [*answers, []] if last == IGNORED else answers
            answers[-1].append(label)
        last = label
    assert [ids[-1] for ids in answers] == [tokenizer.eos_token_id] * len(TURNS)
    compact = [tokenizer.decode(ids[:-1]).replace(" ", "") for ids in answers]
    assert compact == [turn.answer.replace(" ", "") for turn in TURNS]


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_question_is_the_beginning_of_the_conversation(kind):
    """A model is asked with the tokens that it has learned to continue."""
    tokenizer = byte_tokenizer() if kind == "bytes" else tiny_llava()[1]
    for count in (1, 3):
        whole = encode(tokenizer, PATCHES, Wording(), 500, TURNS[:count])
        asked = encode(tokenizer, PATCHES, Wording(), 500, TURNS[:count], answered=False)
        assert whole.ids[: len(asked.ids)] == asked.ids
        assert whole.labels[len(asked.ids)] != IGNORED


def test_template_without_a_question_is_the_picture_and_its_caption():
    tokenizer = tiny_llava()[1]
    found = encode(tokenizer, PATCHES, Wording("<image>\n"), 500, [Turn("Describe it. <image>", "a cat")])
    place = tokenizer.convert_tokens_to_ids(IMAGE)
    assert found.ids == [*[place] * PATCHES, *tokenizer("a cat </s>")["input_ids"]]
    with pytest.raises(ValueError, match="has 0 <image> in its text"):
        encode(tokenizer, PATCHES, Wording("no place"), 500, [Turn("<image>", "a cat")])


def test_what_is_cut_off_is_an_answer_at_most():
    tokenizer = tiny_llava()[1]
    whole = encode(tokenizer, PATCHES, Wording(), 500, TURNS)
    last = max(place for place, label in enumerate(whole.labels) if label == IGNORED)
    assert encode(tokenizer, PATCHES, Wording(), last, TURNS).ids == whole.ids[:last]
    with pytest.raises(ValueError, match=rf"cut at {PATCHES}.* leaves \d+ of {PATCHES} image tokens"):
        encode(tokenizer, PATCHES, Wording(), PATCHES, TURNS)
    with pytest.raises(ValueError, match="no answer"):
        encode(tokenizer, PATCHES, Wording(), PATCHES + 5, TURNS)


def test_shuffled_turns_start_with_the_picture():
    seen = set()
    for seed in range(20):
        turns = shuffled(TURNS, random.Random(seed))
        assert turns[0].question.startswith(f"{IMAGE}\n")
        assert sum(IMAGE in turn.question for turn in turns) == 1
        assert {turn.answer for turn in turns} == {turn.answer for turn in TURNS}
        seen.add(turns[0].answer)
    assert len(seen) == len(TURNS)


def test_conversations_about_one_picture_become_one(tmp_path):
    (one,) = read_conversations(write_records(tmp_path, record()), tmp_path)
    other = one._replace(image=tmp_path / "b.png")
    parts = [
        one._replace(turns=(turn._replace(question=f"{IMAGE}\n{turn.question.split(chr(10))[-1]}"),)) for turn in TURNS
    ]
    assert merged([parts[0], other, *parts[1:]]) == [one, other]


@pytest.mark.parametrize("answered", [True, False])
def test_batches_are_filled_up(tmp_path, answered):
    tokenizer = tiny_llava()[1]
    file = write_records(tmp_path, record(), record(conversations=messages(("human", "<image> a"), ("gpt", "b"))))
    data = Conversations(
        read_conversations(file, tmp_path),
        lambda image: torch.full((3, SIDE, SIDE), float(image.size[0])),
        partial(encode, tokenizer, PATCHES, Wording(), 500, answered=answered),
        targets="xy",
    )
    items = [data[0], data[1]]
    batch = pad(items)
    assert batch["target"] == ["x", "y"]
    assert batch["img"].shape == (2, 3, SIDE, SIDE)
    for row, item in enumerate(items):
        kept = batch["mask"][row].bool()
        assert batch["ids"][row][kept].tolist() == item["ids"]
        assert batch["labels"][row][kept].tolist() == item["labels"]
        assert (batch["labels"][row][~kept] == IGNORED).all()
    assert bool(batch["mask"][1, -1]) is not answered


def test_names_of_pictures_are_checked(tmp_path):
    with pytest.raises(ValueError, match="names no picture"):
        picture_of({"image": 3}, "line 1", tmp_path)


def test_folders_of_language_models_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LANGUAGE_MODEL is '.*nothing', expected 'tiny' or a folder"):
        model.load_language_model(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no tokenizer"):
        model.load_language_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no causal language model"):
        model.load_language_model(tmp_path)


def test_language_models_are_read_from_a_folder(tmp_path):
    torch.manual_seed(0)
    language, tokenizer = model.tiny_language_model(TEXTS, 16, 1, 1)
    language.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, words = model.load_language_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(language.parameters(), again.parameters(), strict=True))
    assert encode(words, PATCHES, Wording(), 500, TURNS) == encode(tokenizer, PATCHES, Wording(), 500, TURNS)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == len(words)
