"""Loading and predicting from Python."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loaded_models import NAMES, plain_logits
from PIL import Image

import align_prompt
import clip
from dassl.data.transforms import build_transform

DEPTH = {"MaPLe": ("TRAINER.MAPLE.PROMPT_DEPTH", 2), "ALIGN": ("TRAINER.ALIGN.PROMPT_DEPTH", 2)}


def preprocessed(model, paths):
    transform = build_transform(model.source.cfg, is_train=False)
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "MaPLe", "ALIGN", "LinearProbe"])
def test_predictions_are_those_of_a_plain_loop(method, trained, pictures):
    model = trained(method, *DEPTH.get(method, ()))
    expected = plain_logits(model, preprocessed(model, pictures))
    found = model.logits(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    rows = model.predict(pictures, top=2)
    assert [row.source for row in rows] == pictures
    for row, probability in zip(rows, found.softmax(dim=1)):
        value, place = probability.topk(2)
        assert row.label == NAMES[place[0]] == row.top[0][0]
        assert [p for _, p in row.top] == pytest.approx(value.tolist(), abs=1e-6)
        assert row.probability == row.top[0][1]


def test_all_forms_of_a_picture_give_one_answer(trained, pictures):
    model = trained("CoOp")
    image = Image.open(pictures[4]).convert("RGB")
    pixels = np.array(image)
    forms = [pictures[4], Path(pictures[4]), image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    forms.append(preprocessed(model, pictures[4:])[0])
    answers = {model.predict(form)[0].top for form in forms}
    assert len(answers) == 1
    batch = model.predict(preprocessed(model, pictures))
    assert [row.label for row in batch] == [row.label for row in model.predict(pictures)]


def test_bad_pictures_are_rows_and_the_rest_goes_on(trained, pictures, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    bad = [str(tmp_path / "no.png"), str(tmp_path / "none.png"), "https://example.org/a.png", torch.zeros(3, 5, 5), 3]
    mixed = [pictures[0], bad[0], bad[1], pictures[1], *bad[2:], pictures[2]]
    model = trained("CoOp")
    rows = model.predict(iter(mixed), batch_size=2, workers=3, skip_errors=True)
    assert [bool(row.error) for row in rows] == [False, True, True, False, True, True, True, False]
    assert [rows[k].label for k in (0, 3, 7)] == [row.label for row in model.predict(pictures[:3])]
    for row, text in zip(
        rows[1:], ["not an image file", "No file exists", "", "not fetched", "preprocessed", "got int"]
    ):
        assert text in row.error
    with pytest.raises(ValueError, match="not an image file"):
        model.predict(mixed)


def test_new_classes_are_those_of_a_model_made_for_them(checkpoint, pictures):
    names = ["dog", "red heart"]
    path = checkpoint("MaPLe", *DEPTH["MaPLe"])
    model, own = align_prompt.load(path, device="cpu"), align_prompt.load(path, classnames=names, device="cpu")
    before = model.logits(pictures)
    model.classnames = names
    assert torch.equal(model.logits(pictures), own.logits(pictures))
    assert model.predict(pictures)[0].label in names
    model.classnames = NAMES
    assert torch.equal(model.logits(pictures), before)


@pytest.mark.parametrize(
    "arguments", [("CoOp", "TRAINER.COOP.CSC", True), ("LAMM",), ("LinearProbe",), ("TipAdapter",)]
)
def test_classes_that_a_method_cannot_change(arguments, trained, pictures):
    model = trained(*arguments)
    before = model.logits(pictures)
    with pytest.raises(ValueError, match=r"cannot change its classes: .* was trained on other classes"):
        model.classnames = ["dog", "red heart"]
    assert model.classnames == NAMES
    assert torch.equal(model.logits(pictures), before)


@pytest.mark.parametrize("names", [[], "cat", ["cat", " "], ["cat", 3]])
def test_names_that_are_no_names(names, trained):
    with pytest.raises(ValueError, match="class"):
        trained("CoOp").classnames = names


def test_zero_shot_clip_by_name(backbone, pictures):
    model = align_prompt.load(backbone, device="cpu")
    assert model.classnames == []
    assert model.image_features(pictures).shape == (5, 32)
    with pytest.raises(ValueError, match="no classes to choose from"):
        model.predict(pictures)
    model.classnames = names = ["cat", "dog"]
    plain, transform = clip.load(backbone)
    image = torch.stack([transform(Image.open(path)) for path in pictures])
    ids = clip.tokenize([f"a photo of a {name}." for name in names], vocab_size=plain.vocab_size)
    with torch.no_grad():
        expected = plain(image, ids)[0]
    torch.testing.assert_close(model.logits(pictures), expected, rtol=1e-5, atol=1e-4)
    features = model.image_features(pictures) @ model.text_features.T * plain.logit_scale.exp().detach()
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-4)


def test_features_of_several_prompts_and_of_text_that_depends_on_the_picture(trained, pictures):
    model = trained(
        "ALIGN", *DEPTH["ALIGN"], "TRAINER.ALIGN.VISION_PROMPT_NUMBER", 2, "TRAINER.ALIGN.TEXT_PROMPT_NUMBER", 2
    )
    assert model.image_features(pictures).shape == (5, 2, 32)
    assert model.text_features.shape == (3, 2, 32)
    with pytest.raises(ValueError, match="depends on the picture"):
        _ = trained("CoCoOp").text_features


@pytest.mark.slow
def test_twenty_thousand_classes(backbone, pictures):
    names = [f"thing {number}" for number in range(20_000)]
    model = align_prompt.load(backbone, names, "cpu")
    chosen = model.logits(pictures[:1])[0].argmax()
    assert model.predict(pictures[:1], top=3)[0].label == names[chosen]
    assert model.text_features.shape == (20_000, 32)


def test_temperature_makes_labels_most_probable(trained, pictures):
    model = trained("CoOp")
    logits = model.logits(pictures)
    labels = [NAMES[k % 3] for k in range(5)]
    target = torch.tensor([k % 3 for k in range(5)])
    grid = torch.linspace(-4, 4, 2001).exp()
    losses = torch.stack([torch.nn.functional.cross_entropy(logits / value, target) for value in grid])
    found = model.calibrate(pictures, labels)
    best = torch.nn.functional.cross_entropy(logits / found, target)
    assert float(best) <= float(losses.min()) + 1e-5
    assert model.predict(pictures)[0].probability == pytest.approx(
        float((logits / found).softmax(1)[0].max()), abs=1e-6
    )
    with pytest.raises(ValueError, match="none of the 3 classes"):
        model.calibrate(pictures, ["dog"] * 5)
    with pytest.raises(ValueError, match="one label for each"):
        model.calibrate(pictures, labels[:2])


def test_runs_that_cannot_be_loaded(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        align_prompt.load(tmp_path)
    with pytest.raises(ValueError, match="neither a file nor one of the models"):
        align_prompt.load("ViT-Z/1")
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    with pytest.raises(ValueError, match="is incomplete: start its command again"):
        align_prompt.load(tmp_path)
    result = {"mode": "eval", "checkpoint": "output/base (epoch 4)"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "DONE").write_text("")
    with pytest.raises(ValueError, match="is an evaluation of output/base"):
        align_prompt.load(tmp_path)
    path = checkpoint("CoOp")
    content = torch.load(path, weights_only=True)
    path.with_name(".sha256.json").unlink()  # as of files of other programs: what follows is told by the content
    torch.save({**content, "config": content["config"] + "\nMINE: 1\nIMPORTS: [mine.py]\n"}, path)
    with pytest.raises(ValueError, match=r"unknown key MINE|stands twice"):
        align_prompt.load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        align_prompt.load(path)


def test_no_torch_for_the_import_and_for_help():
    code = (
        "import sys, align_prompt, align_prompt.__main__ as program\n"
        "for command in program.COMMANDS:\n"
        "    try: program.main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[2])


def test_nothing_is_written_where_one_stands(checkpoint, pictures, tmp_path, monkeypatch):
    path = checkpoint("CoOp", "TEST.PREDICTIONS", True, "TEST.COMPUTE_CMAT", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = align_prompt.load(path, device="cpu")
    model.predict(pictures)
    image = next(iter(model.image_batches(pictures, 5)))
    batch = {"img": image, "label": torch.zeros(5, dtype=torch.long), "impath": pictures}
    monkeypatch.setattr(model.trainer, "test_loader", [batch])
    model.trainer.test()
    assert not list(Path().iterdir())
