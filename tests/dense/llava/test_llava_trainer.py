"""LLaVA through train.py: both stages, LLaVA-Bench with a judge, resuming, and errors."""

import json
import sys
from pathlib import Path

import pytest
import torch
from llava_models import TURNS, record
from PIL import Image

import clip
import train
from dense.llava.bench import Question
from dense.llava.model import tiny_language_model
from dense.llava.trainer import Answers, LLaVA, sheet

ROOT = Path(__file__).resolve().parents[3]
JUDGE = (
    "import json, sys\nfor x in sys.stdin: print(json.dumps({'question_id': json.loads(x)['question_id'], 'score': 7}))"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """LLaVA's files with nine pictures, a CLIP and a folder with a language model."""
    root = tmp_path_factory.mktemp("llava")
    for folder in ("llava_pretrain/images", "llava_instruct", "coco/train2017", "llava_bench/images", "language"):
        (root / folder).mkdir(parents=True)
    captions, talks, questions = [], [], []
    for number in range(9):
        name = f"{number}.png"
        for folder in ("llava_pretrain/images", "coco/train2017", "llava_bench/images"):
            Image.new("RGB", (40 + number, 30), (20 * number, 0, 90)).save(root / folder / name)
        messages = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": TURNS[0].answer}]
        captions.append(record(image=name, conversations=messages))
        talks.append(record(image=name))
        questions.append({"question_id": number, "image": name, "text": TURNS[1].question, "category": "conv"})
    (root / "llava_pretrain/chat.json").write_text(json.dumps(captions))
    (root / "llava_instruct/llava_instruct_150k.json").write_text(json.dumps(talks))
    (root / "llava_bench/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    answers = [{"question_id": row["question_id"], "text": "one."} for row in questions]
    (root / "llava_bench/answers_gpt4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    torch.manual_seed(0)
    clip.save_model(clip.new_model(16, 32, 2, 64, 8, 8, 600, 64, 1, 1), root / "clip.safetensors")
    language, tokenizer = tiny_language_model([text for turn in TURNS for text in turn], 32, 1, 2)
    language.save_pretrained(root / "language")
    tokenizer.save_pretrained(root / "language")
    return root


def command(root, out, dataset, *options):
    flags = {
        "--root": root,
        "--seed": 3,
        "--trainer": "LLaVA",
        "--dataset-config-file": dataset,
        "--backbone": root / "clip.safetensors",
        "--output-dir": out,
    }
    pairs = {
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 3,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 1e-3,
        "OPTIM.LR_SCHEDULER": "batch_cosine",
        "OPTIM.MAX_EPOCH": 2,
        "OPTIM.WARMUP_EPOCH": -1,
        "TRAINER.LLAVA.LANGUAGE_MODEL": root / "language",
        "TRAINER.LLAVA.MAX_ANSWER": 3,
        **dict(zip(options[::2], options[1::2], strict=True)),
    }
    return [str(item) for pair in (*flags.items(), *pairs.items()) for item in pair]


def weights_of(folder, epoch=2):
    return torch.load(folder / "model" / f"model.pth.tar-{epoch}", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_both_stages_and_the_benchmark(root, tmp_path):
    first, second, bench = (tmp_path / name for name in ("first", "second", "bench"))
    stage1 = ("TRAINER.LLAVA.STAGE", 1, "TRAINER.LLAVA.TEMPLATE", "<image>\n", "TEST.NO_TEST", True)
    train.main(command(root, first, "llava_pretrain", *stage1))
    projection = weights_of(first)
    assert all(".multi_modal_projector." in name for name in projection)
    train.main(
        command(root, second, "llava_instruct", "TRAIN.INIT_FROM", first, "OPTIM.LR", 1e-8, "TRAINER.LLAVA.MERGE", True)
    )
    learned = weights_of(second)
    assert all((learned[name] - value).abs().max() < 1e-5 for name, value in projection.items())
    assert any(name.startswith("lm_head") for name in learned)
    assert not any("vision_tower" in name for name in learned)
    with Image.open(second / "predictions.png") as picture:
        assert picture.size == (980, 1036)  # nine pages of 240 x 340, four in a row
    (tmp_path / "judge.py").write_text(JUDGE)
    judge = ("TRAINER.LLAVA.JUDGE", f"{sys.executable} {tmp_path / 'judge.py'}")
    found = train.main([*("--eval-only", "--model-dir", str(second)), *command(root, bench, "llava_bench", *judge)])
    rows = [json.loads(line) for line in (bench / "answers.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == list(range(9))
    assert found["judge"] == 7
    assert found["by_category"]["conv"]["accuracy"] == found["accuracy"]


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(root, whole_and_killed, tmp_path):
    options = ("TRAINER.LLAVA.MERGE", True, "TEST.NO_TEST", True, "TRAINER.LLAVA.SHEET", 0)
    options = (*options, "TRAINER.LLAVA.LORA_RANK", 2, "TRAINER.LLAVA.CHECKPOINT", True, "TRAIN.CHECKPOINT_FREQ", 1)
    whole_and_killed(LLaVA, lambda folder: command(root, folder, "llava_instruct", *options))
    earlier, last = (weights_of(tmp_path / "whole", epoch) for epoch in (1, 2))
    assert any(not torch.equal(earlier[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.LLAVA.LANGUAGE_MODEL", "tiny", "TRAINER.LLAVA.LORA_RANK", 1), "it goes with STAGE 2, LORA_RANK 0"),
        (("TRAINER.LLAVA.LANGUAGE_MODEL", "/nowhere"), "expected 'tiny' or a folder with config.json"),
        (("TRAINER.LLAVA.STAGE", 1), "has no captions of its train split"),
        (("INPUT.SIZE", "(32, 64)"), r"INPUT.SIZE is (32, 64), expected a square"),
    ],
)
def test_bad_input_ends_in_one_line(root, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        train.main(command(root, tmp_path / "run", "llava_instruct", *options))
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "error: " in shown
    assert message in shown
    assert "Traceback" not in shown


def test_missing_packages_name_the_file_to_install(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit):
        train.main(command(root, tmp_path / "run", "llava_instruct", "TRAINER.LLAVA.LORA_RANK", 2))
    assert "needs peft: pip install -r requirements-dense.txt" in capsys.readouterr().err


def test_answers_without_a_reference_are_counted(tmp_path):
    evaluator = Answers(tmp_path / "answers.jsonl", "student")
    evaluator.process(["b", "a"], [Question(name, tmp_path, "what?", "conv", None) for name in (10, 9)])
    assert evaluator.evaluate() == {"questions": 2.0}
    assert [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == ["a", "b"]


def test_sheet_shows_picture_and_texts(tmp_path):
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "a.png")
    drawn = sheet(Question(1, tmp_path / "a.png", "what is it?", "what", "red"), "blue")
    assert drawn.shape == (3, 340, 240)
    assert drawn[:, 120, 120].tolist() == [255, 0, 0]
    assert drawn[:, 10, 10].tolist() == [255, 255, 255]
    assert (drawn[:, 240:] < 255).any()
