"""The example of docs/add_a_method.md runs as printed."""

import json
import re
from pathlib import Path

import pytest
import torch

import clip
import train

PAGE = Path(train.__file__).parent / "docs" / "add_a_method.md"


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_the_example_has_the_length_it_says():
    assert len(example().rstrip().splitlines()) <= 32


@pytest.mark.slow
def test_the_example_trains(tmp_path):
    (tmp_path / "anchored.py").write_text(example())
    torch.manual_seed(0)
    tiny = clip.CLIP(32, 64, 2, 64, 16, 77, 2048, 32, 2, 2, vision_heads=2)
    clip.save_model(tiny, tmp_path / "tiny.safetensors")
    settings = {
        "DATASET.NAME": "EmojiGroups",
        "DATASET.NUM_SHOTS": 1,
        "DATASET.SOURCE_DOMAINS": "('openmoji',)",
        "DATASET.TARGET_DOMAINS": "('openmoji',)",
        "DATASET.CACHE_DIR": str(tmp_path / "cache"),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 16,
        "INPUT.SIZE": "(64, 64)",
        "INPUT.TRANSFORMS": "('normalize',)",
        "MODEL.BACKBONE.NAME": str(tmp_path / "tiny.safetensors"),
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": 0.02,
        "OPTIM.MAX_EPOCH": 4,
        "TRAINER.ANCHORED.WEIGHT": 1,
    }
    flags = ["--import", str(tmp_path / "anchored.py"), "--trainer", "AnchoredCoOp", "--root", str(tmp_path / "data")]
    pairs = [str(item) for pair in settings.items() for item in pair]
    train.main([*flags, "--seed", "1", "--output-dir", str(tmp_path / "run"), *pairs])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [record for record in map(json.loads, lines) if record["kind"] == "epoch"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["anchor"] > 0
    assert all(record["loss"] == pytest.approx(record["ce"] + record["anchor"], rel=1e-4) for record in epochs)
    saved = torch.load(tmp_path / "run" / "prompt_learner" / "model.pth.tar-4", weights_only=True)
    assert set(saved["state_dict"]) == {"ctx"}
