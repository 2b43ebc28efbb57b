"""LLaVA (Liu et al. 2023): a language model that sees through the image tower, in the paper's two stages."""

from __future__ import annotations

import logging
import textwrap
from collections import OrderedDict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from dassl.config import CfgNode, Option
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoints import check_weights, checkpoint_file, last_epoch, read_checkpoint
from dassl.utils import distributed
from dense.llava.bench import Question, read_questions, score, write_answers
from dense.llava.data import IMAGE, Conversation, Conversations, Turn, Wording, encode, merged, pad, read_conversations
from dense.llava.model import (
    PROJECTIONS,
    VisionTower,
    answers,
    build_llava,
    choose_learned,
    load_language_model,
    tiny_language_model,
)
from dense.trainer import DenseTrainer, dense_options, needs
from trainers.parts.options import count

logger = logging.getLogger(__name__)

TINY = "tiny"
TEXTS = ("captions", "conversations")  # of stage 1 and 2


class Answers:
    """Evaluator of answers to questions, which are written to a file.

    Args:
        file: of the answers, as in LLaVA-Bench.
        model: name of the model in it.
        judge: command, see `dense.llava.bench.judged`; "" for none.
    """

    def __init__(self, file: Path, model: str, judge: str = "") -> None:
        self.file, self.model, self.judge = file, model, judge
        self.found: dict[Any, tuple[Question, str]] = {}
        self.by_category: dict[str, Any] = {}

    def reset(self) -> None:
        """Forget everything."""
        self.found = {}

    def process(self, predictions: list[str], targets: list[Question]) -> None:
        """Take answers to questions."""
        self.found |= {one.id: (one, text) for one, text in zip(targets, predictions, strict=True)}

    def evaluate(self) -> OrderedDict[str, float]:
        """Figures of `dense.llava.bench.score` that are known, in all processes; at least the number of questions."""
        rows = [row for share in distributed.all_gather_object(self.found) for row in share.values()]
        figures: Any = None
        if distributed.is_main_process():
            rows.sort(key=lambda row: str(row[0].id).zfill(12))
            questions, texts = zip(*rows)
            write_answers(self.file, questions, texts, self.model)
            figures = score(questions, texts, self.judge)
        figures = distributed.broadcast_object(figures)
        self.by_category = figures.pop("by_category")
        known = OrderedDict((name, value) for name, value in figures.items() if value is not None)
        logger.info("Answers to %d questions: %s", len(rows), ", ".join(f"{k} {v:.1f}" for k, v in known.items()))
        return known or OrderedDict(questions=float(len(rows)))

    def summary(self) -> dict[str, Any]:
        """The figures by category."""
        return {"by_category": self.by_category}


@TRAINER_REGISTRY.register()
class LLaVA(DenseTrainer):
    """The image tower stays as it is; stage 1 trains a projection of its patches, stage 2 also the language model."""

    node = "LLAVA"

    @staticmethod
    def defaults() -> CfgNode:
        return dense_options(
            "LLAVA",
            {
                "STAGE": Option(2, "1: the projection learns, of captions; 2: the language model too", choices=(1, 2)),
                "LANGUAGE_MODEL": Option(
                    TINY,
                    "folder of a causal language model; tiny: a million random weights, words of the data",
                ),
                "LAYER": Option(-2, "block whose patches the language model sees, below 0 counted from the last"),
                "PROJECTION": Option("mlp", "mlp, of two layers, or that of the first LLaVA", choices=PROJECTIONS),
                "LORA_RANK": count(0, "stage 2: rank of LoRA in the language model; 0 = all of it learns", low=0),
                "CHECKPOINT": Option(False, "compute blocks of the language model again in the backward pass"),
                "MERGE": Option(False, "conversations about a picture are one, its turns in random order"),
                "TEMPLATE": Option(Wording().template, "question in the text, its place is {}; without: left out"),
                "SYSTEM": Option("", "text before every conversation"),
                "MAX_LENGTH": count(2048, "tokens, image tokens among them, after which a conversation is cut off"),
                "MAX_ANSWER": count(256, "tokens of an answer at most"),
                "JUDGE": Option("", "command that marks answers, see docs/dense.md"),
            },
            backbone=False,
        )

    @classmethod
    def config_problems(cls, cfg: CfgNode) -> list[str]:
        found = super().config_problems(cfg)
        if "MODEL" not in cfg or cls.__name__ != cfg.TRAINER.NAME:
            return found
        size = cfg.INPUT.SIZE
        if size[0] != size[1]:
            found.append(f"INPUT.SIZE is {tuple(size)}, expected a square")
        return found

    @cached_property
    def tower(self) -> VisionTower:
        """The image tower for pictures of INPUT.SIZE."""
        return VisionTower(self.load_clip().visual, self.options.LAYER, self.cfg.INPUT.SIZE[0])

    @cached_property
    def language(self) -> tuple[Any, Any]:
        """The language model and its tokenizer."""
        for package in ("transformers", *(["peft"] if self.options.LORA_RANK else [])):
            needs(package)
        folder = self.options.LANGUAGE_MODEL
        frozen = self.options.STAGE == 1 or self.options.LORA_RANK
        if folder != TINY:
            return load_language_model(folder, self.precision.dtype if frozen else torch.float32)
        if frozen or "train" not in self.dataset.splits:
            raise ValueError(
                f"TRAINER.LLAVA.LANGUAGE_MODEL is {TINY}, which has random weights and the words of training data: it "
                "goes with STAGE 2, LORA_RANK 0 and data to train on; otherwise give the folder of a language model"
            )
        texts = [
            text
            for kind in TEXTS
            if getattr(self.dataset.splits["train"], kind)
            for one in read_conversations(*(self.dataset.file("train", part) for part in (kind, "images")))
            for turn in one.turns
            for text in turn
        ]
        return tiny_language_model([*texts, self.wording.template, self.wording.system])

    @property
    def wording(self) -> Wording:
        """Texts around questions and answers."""
        return Wording(self.options.TEMPLATE, self.options.SYSTEM)

    def read_split(self, split: str, train: bool) -> Conversations:
        images, files = self.dataset.file(split, "images"), self.dataset.splits[split]
        targets: list[Question] | None = None
        if train:
            found = read_conversations(self.dataset.file(split, TEXTS[self.options.STAGE - 1]), images)
            found = merged(found) if self.options.MERGE else found
        else:
            targets = read_questions(self.dataset.file(split, "questions"), images, files.answers or "")
            found = [
                Conversation(f"question {one.id!r}", one.image, (Turn(f"{IMAGE}\n{one.text}", ""),)) for one in targets
            ]
        encoder = partial(
            encode, self.language[1], self.tower.patches, self.wording, self.options.MAX_LENGTH, answered=train
        )
        transform = build_transform(self.cfg, is_train=False, choices=("normalize",))
        items = [Datum(str(one.image), 0) for one in found]
        return Conversations(found, transform, encoder, items, train and self.options.MERGE, targets)

    @staticmethod
    def collate(items: list[Any]) -> Any:
        return pad(items)

    def build_network(self) -> nn.Module:
        """The LLaVA, with what TRAIN.INIT_FROM has learned."""
        language, tokenizer = self.language
        options = self.options
        network = build_llava(self.tower, language, tokenizer.convert_tokens_to_ids(IMAGE), options.PROJECTION)
        choose_learned(network, options.STAGE, options.LORA_RANK)
        if options.CHECKPOINT:
            network.model.language_model.gradient_checkpointing_enable()
        if self.cfg.TRAIN.INIT_FROM:
            path = checkpoint_file(self.cfg.TRAIN.INIT_FROM, "model", last_epoch(self.cfg.TRAIN.INIT_FROM))
            weights = {**network.state_dict(), **read_checkpoint(path)["state_dict"]}
            check_weights(path, network, weights)
            network.load_state_dict(weights)
            logger.info("Start from %s", path)
        return network

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [part for part in network.parameters() if part.requires_grad]}]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        ids, mask, labels = (batch[name].to(self.device, non_blocking=True) for name in ("ids", "mask", "labels"))
        image = batch["img"].to(self.device, non_blocking=True)
        found = self.network(input_ids=ids, pixel_values=image, attention_mask=mask, labels=labels)
        return {"answer": found.loss}

    def parse_batch_test(self, batch: Any) -> Any:
        return {name: batch[name].to(self.device) for name in ("ids", "mask", "img")}, batch["target"]

    def model_inference(self, input: Any) -> Any:
        return answers(self.model, self.language[1], input, self.options.MAX_ANSWER)

    def build_evaluator(self) -> Answers:
        return Answers(Path(self.output_dir) / "answers.jsonl", self.cfg.MODEL.BACKBONE.NAME, self.options.JUDGE)

    def drawings(self, count: int) -> list[Tensor]:
        """Pictures with question, right answer and answer below."""
        loader = self.test_loader or self.val_loader
        if loader is None:
            return []
        pictures: Conversations = loader.dataset
        chosen = [round(place) for place in np.linspace(0, len(pictures) - 1, min(count, len(pictures)))]
        inputs, questions = self.parse_batch_test(pad([pictures[number] for number in chosen]))
        with self.test_precision.autocast():
            texts = self.model_inference(inputs)
        return [sheet(one, text) for one, text in zip(questions, texts, strict=True)]


def sheet(question: Question, answer: str, side: int = 240) -> Tensor:
    """Picture with question, right answer and answer below: uint8 (3, side + 100, side)."""
    page = Image.new("RGB", (side, side + 100), "white")
    with Image.open(question.image) as picture:
        picture = picture.convert("RGB")
        scale = side / max(picture.size)
        picture = picture.resize([round(scale * length) for length in picture.size])
        page.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    lines = [("black", question.text)]
    if question.answer is not None:
        lines.append(("green", f"right: {question.answer}"))
    lines.append(("blue", f"answer: {answer}"))
    pen, font, top = ImageDraw.Draw(page), ImageFont.load_default(13), side + 2
    for colour, line in lines:
        for part in textwrap.wrap(line, side // 7)[:2]:
            pen.text((4, top), part, colour, font)
            top += 16
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)
