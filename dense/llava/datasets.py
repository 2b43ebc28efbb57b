"""LLaVA's data as published: captions for the first stage, conversations for the second, questions to measure on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from dense.data import DenseDataset, Split


def _bench(root: Path) -> dict[str, Split]:
    """LLaVA-Bench (In-the-Wild): questions.jsonl, images/ and maybe answers_gpt4.jsonl, the answers to compare with."""
    folder = root / "llava_bench"
    answers = folder / "answers_gpt4.jsonl"
    found = Split(
        folder / "images", questions=folder / "questions.jsonl", answers=answers if answers.is_file() else None
    )
    return {"test": found}


class _LLaVAData(DenseDataset):
    def __init__(self, cfg: Any) -> None:
        root = Path(cfg.DATASET.ROOT).expanduser().resolve()
        super().__init__([], self.files(root), root)

    def files(self, root: Path) -> dict[str, Split]:
        """Splits below DATASET.ROOT."""
        raise NotImplementedError


@DATASET_REGISTRY.register()
class LLaVAPretrain(_LLaVAData):
    """Captions of CC-3M or of LAION, CC and SBU: llava_pretrain/chat.json and llava_pretrain/images."""

    config_name = "llava_pretrain"

    def files(self, root: Path) -> dict[str, Split]:
        """Training pictures with captions."""
        folder = root / "llava_pretrain"
        return {"train": Split(folder / "images", captions=folder / "chat.json")}


@DATASET_REGISTRY.register()
class LLaVAInstruct(_LLaVAData):
    """LLaVA-Instruct-150K: llava_instruct/llava_instruct_150k.json and the pictures of coco/train2017; LLaVA-Bench to
    measure on, if it is there."""

    config_name = "llava_instruct"

    def files(self, root: Path) -> dict[str, Split]:
        """Training pictures with conversations, and LLaVA-Bench."""
        conversations = root / "llava_instruct" / "llava_instruct_150k.json"
        train = Split(root / "coco" / "train2017", conversations=conversations)
        return {"train": train, **(_bench(root) if (root / "llava_bench").is_dir() else {})}


@DATASET_REGISTRY.register()
class LLaVABench(_LLaVAData):
    """LLaVA-Bench alone, for a trained model: llava_bench/."""

    config_name = "llava_bench"
    test_only = True

    def files(self, root: Path) -> dict[str, Split]:
        """Questions."""
        return _bench(root)
