"""Conversations about pictures in the JSON layout of LLaVA (Liu et al. 2023), as token ids with the answers marked.

Both of its files have this layout, that of LLaVA-Pretrain (captions of CC-3M) and LLaVA-Instruct: a list of
`{"image": FILE, "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": ...}]}`
with questions and answers in turn and the place of the picture in the first question.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

IMAGE = "<image>"
IGNORED = -100
"""Label of a token that no loss is computed of."""
ROLES = ("human", "gpt")


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class Conversation(NamedTuple):
    """Turns about one picture; the first question holds `<image>`. `name` is for messages."""

    name: str
    image: Path
    turns: tuple[Turn, ...]


class Wording(NamedTuple):
    """Texts around questions and answers.

    Attributes:
        template: of a question, whose place is {}; without {} the question is left out, as LLaVA's first stage does.
        system: stands before every conversation.
    """

    template: str = "USER: {} ASSISTANT:"
    system: str = ""


class Encoded(NamedTuple):
    """Token ids of a conversation, and for each the id again where it belongs to an answer, else `IGNORED`."""

    ids: list[int]
    labels: list[int]


def read_conversations(file: str | Path, images: str | Path) -> list[Conversation]:
    """Conversations of a JSON file.

    Args:
        file: see the top of this module.
        images: folder of the pictures.

    Raises:
        FileNotFoundError: there is no such file, or a picture is missing.
        ValueError: the file is no such list, or a record is incomplete; names the record.
    """
    records = json.loads(_existing(file).read_text(encoding="utf-8"))
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} holds {type(records).__name__}, expected a list of one or more conversations")
    return [_conversation(record, f"record {number} of {file}", Path(images)) for number, record in enumerate(records)]


def _existing(file: str | Path) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, expected conversations in LLaVA's JSON layout")
    return path


def _conversation(record: Any, name: str, images: Path) -> Conversation:
    if not isinstance(record, dict):
        raise ValueError(f"{name} is {type(record).__name__}, expected an object with image and conversations")
    name = f"{name} (id {record['id']!r})" if "id" in record else name
    picture = picture_of(record, name, images)
    messages = record.get("conversations")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ValueError(f"{name} has no conversations, expected a list of messages with from and value")
    roles = [one.get("from") for one in messages]
    if len(roles) % 2 or tuple(roles) != ROLES * (len(roles) // 2):
        raise ValueError(f"{name} has messages from {roles}, expected human and gpt in turn, as many of each")
    values = [one.get("value") for one in messages]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"{name} has a message without text, expected a text in every value")
    counts = [value.count(IMAGE) for value in values]
    if counts[0] != 1 or sum(counts) != 1:
        raise ValueError(
            f"{name} has {sum(counts)} {IMAGE}, {counts[0]} of them in the first question, "
            "expected one, there: a conversation is about one picture"
        )
    return Conversation(name, picture, tuple(map(Turn, values[::2], values[1::2])))


def picture_of(record: dict[str, Any], name: str, images: Path) -> Path:
    """Path of a record's picture.

    Raises:
        ValueError: it names none.
        FileNotFoundError: the file is missing.
    """
    file = record.get("image")
    if not isinstance(file, str) or not file:
        raise ValueError(f"{name} names no picture (image is {file!r}), expected the name of a file in {images}")
    if not (images / file).is_file():
        raise FileNotFoundError(f"the picture {images / file} of {name} is missing")
    return images / file


def prompt_of(turns: Sequence[Turn], wording: Wording, end: str, answered: bool = True) -> tuple[str, list[range]]:
    """Text of a conversation and the characters of its answers, each with the `end` token behind it.

    Args:
        answered: False leaves out the last answer, which is what a model is given to continue.
    """
    text = wording.system if not wording.system or wording.system[-1].isspace() else f"{wording.system} "
    gap = "" if wording.template[-1:].isspace() else " "
    spans = []
    for number, turn in enumerate(turns, start=1):
        text += wording.template.replace("{}", turn.question)
        if answered or number < len(turns):
            spans.append(range(len(text), len(text) + len(gap) + len(turn.answer) + len(end)))
            text += gap + turn.answer + end
    return text, spans


def encode(
    tokenizer: Any,
    patches: int,
    wording: Wording,
    max_length: int,
    turns: Sequence[Turn],
    answered: bool = True,
    name: str = "the conversation",
) -> Encoded:
    """Token ids of a conversation with `patches` image tokens in the place of `<image>`; answers are the labels.

    The text is cut into tokens as a whole, as it is for a model that generates; a token belongs to an answer if one of
    its characters does. What is longer than `max_length` is cut off at the end.

    Raises:
        ValueError: the text has not exactly one `<image>`, or the image tokens or all answers are cut off.
    """
    text, spans = prompt_of(turns, wording, tokenizer.eos_token, answered)
    found = tokenizer(text, return_offsets_mapping=True)
    inside = {place for span in spans for place in span if answered}
    ids: list[int] = []
    labels: list[int] = []
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    if (count := found["input_ids"].count(image_token)) != 1:
        raise ValueError(f"{name} has {count} {IMAGE} in its text {text[:80]!r}, expected one for its one picture")
    for token, (start, stop) in zip(found["input_ids"], found["offset_mapping"]):
        times = patches if token == image_token else 1
        ids += [token] * times
        labels += [token if not inside.isdisjoint(range(start, stop)) else IGNORED] * times
    whole, ids, labels = len(ids), ids[:max_length], labels[:max_length]
    kept = ids.count(image_token)
    if kept != patches or (answered and all(label == IGNORED for label in labels)):
        raise ValueError(
            f"{name} has {whole} tokens and is cut at {max_length} (TRAINER.LLAVA.MAX_LENGTH), which leaves {kept} of "
            f"{patches} image tokens and {'no answer' if kept == patches else 'a part of the picture'}"
        )
    return Encoded(ids, labels)


def merged(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Conversations with those about the same picture as one; what follows the first has no `<image>`."""
    groups: dict[Path, Conversation] = {}
    for one in conversations:
        if (first := groups.get(one.image)) is None:
            groups[one.image] = one
        else:
            plain = (turn._replace(question=turn.question.replace(IMAGE, "").strip()) for turn in one.turns)
            groups[one.image] = first._replace(turns=(*first.turns, *plain))
    return list(groups.values())


def shuffled(turns: Sequence[Turn], seed: random.Random) -> list[Turn]:
    """Turns in random order, with `<image>` moved to the question that is first now."""
    plain = [Turn(turn.question.replace(IMAGE, "").strip(), turn.answer) for turn in turns]
    seed.shuffle(plain)
    return [plain[0]._replace(question=f"{IMAGE}\n{plain[0].question}"), *plain[1:]]


class Conversations(Dataset[dict[str, Any]]):
    """Items {img: (3, H, W), ids, labels, target} of conversations.

    Args:
        transform: from a PIL image to the input of the vision tower.
        encoder: from turns to `Encoded`, with a `name` for messages.
        items: what stands for the conversations in fingerprints.
        shuffle: draw the order of the turns anew each time, so that no answer can be read off an earlier one always.
        targets: what the answers are compared with, for each conversation.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        transform: Any,
        encoder: Callable[..., Encoded],
        items: Sequence[Any] = (),
        shuffle: bool = False,
        targets: Sequence[Any] | None = None,
    ) -> None:
        self.conversations, self.transform, self.encoder = conversations, transform, encoder
        self.items, self.shuffle, self.targets = list(items), shuffle, targets

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, path, turns = self.conversations[index]
        if self.shuffle and len(turns) > 1:
            turns = tuple(shuffled(turns, random.Random(int(torch.randint(2**31, ())))))
        with Image.open(path) as image:
            picture = self.transform(image.convert("RGB"))
        target = None if self.targets is None else self.targets[index]
        return {"img": picture, "target": target, **self.encoder(turns=turns, name=name)._asdict()}


def pad(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batch of items as long as the longest: img (B, 3, H, W), ids, labels and mask (B, L), the list target.

    It is filled up with tokens 0, which the mask hides: behind the text, or before it if nothing is an answer, so that
    a model goes on where the text ends.
    """
    length = max(len(item["ids"]) for item in items)
    left = all(label == IGNORED for item in items for label in item["labels"])

    def filled(values: list[int], filler: int) -> list[int]:
        more = [filler] * (length - len(values))
        return more + values if left else values + more

    return {
        "img": torch.stack([item["img"] for item in items]),
        "ids": torch.tensor([filled(item["ids"], 0) for item in items]),
        "labels": torch.tensor([filled(item["labels"], IGNORED) for item in items]),
        "mask": torch.tensor([filled([1] * len(item["ids"]), 0) for item in items]),
        "target": [item["target"] for item in items],
    }
