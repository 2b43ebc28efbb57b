"""The examples of docs/add_a_method.md run as printed."""

import json
import re
from pathlib import Path

import pytest
import torch

import clip
import train
from tests.short_options import short_run

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
def test_the_example_trains(tmp_path, number, name, own, few_emoji, pictures_root):
    (tmp_path / "method.py").write_text(examples()[number])
    torch.manual_seed(0)
    tiny = clip.CLIP(32, 64, 2, 64, 16, 77, 2048, 32, 2, 2, vision_heads=2)
    clip.save_model(tiny, tmp_path / "tiny.safetensors")
    flags = ["--import", str(tmp_path / "method.py"), "--trainer", name, "--root", pictures_root]
    pairs = short_run(tmp_path, tmp_path / "tiny.safetensors", **{"OPTIM.MAX_EPOCH": 4, "OPTIM.LR": 0.002, **own})
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
