"""The examples of docs/add_a_method.md run as printed."""

import json
import re
from pathlib import Path

import pytest
import torch

import clip
import train

PAGE = Path(train.__file__).parent / "docs" / "add_a_method.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_examples_have_the_length_they_say():
    assert all(len(example.rstrip().splitlines()) <= most for example, most in zip(examples(), (32, 40), strict=True))


EXAMPLES = [
    (0, "AnchoredCoOp", {"TRAINER.ANCHORED.WEIGHT": 1}),
    (1, "ParallelAdapter", {"TRAINER.PARALLEL.PREC": "bf16"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "own"), EXAMPLES)
def test_the_example_trains(tmp_path, number, name, own):
    (tmp_path / "method.py").write_text(examples()[number])
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
        **own,
    }
    flags = ["--import", str(tmp_path / "method.py"), "--trainer", name, "--root", str(tmp_path / "data")]
    pairs = [str(item) for pair in settings.items() for item in pair]
    train.main([*flags, "--seed", "1", "--output-dir", str(tmp_path / "run"), *pairs])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [record for record in map(json.loads, lines) if record["kind"] == "epoch"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    saved = torch.load(tmp_path / "run" / "prompt_learner" / "model.pth.tar-4", weights_only=True)["state_dict"]
    assert {value.dtype for value in saved.values()} == {torch.float32}
    if number == 0:
        assert epochs[-1]["anchor"] > 0
        assert all(record["loss"] == pytest.approx(record["ce"] + record["anchor"], rel=1e-4) for record in epochs)
        assert set(saved) == {"ctx"}
    else:
        assert len(saved) == 2 * 2 * 4  # two towers, two blocks, weight and bias of two layers
