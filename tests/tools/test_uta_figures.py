"""Pictures of unmasked token alignment: the numbers in them."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clip
from tools.uta_figures import main, similarity_maps


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2, rope_grid=16).eval()


@torch.no_grad()
def test_maps_are_cosines_of_single_patches(model, rng):
    image = torch.randn(3, 32, 32, generator=rng)
    maps = similarity_maps(model, image, "a cat", (1, 2))
    tokens = model.encode_image(image[None]).tokens[0, 1:]
    words = model.encode_text(clip.tokenize(["a cat"], vocab_size=2048)).pooled[0]
    for y in range(4):
        for x in range(4):
            patch = tokens[4 * y + x]
            assert maps.text[y, x].item() == pytest.approx(F.cosine_similarity(patch, words, dim=0).item(), abs=1e-5)
            assert maps.patch[y, x].item() == pytest.approx(
                F.cosine_similarity(patch, tokens[6], dim=0).item(), abs=1e-5
            )


def test_command_line(model, tmp_path, capsys):
    assert main(["masks", "--side", "8", str(tmp_path / "masks.png")]) == 0
    spread = {line.split(":")[0]: float(line.split()[4].rstrip(",")) for line in capsys.readouterr().out.splitlines()}
    assert spread["reversed"] < 0.1 < spread["block"]
    records = [{"kind": "epoch", "epoch": e, "seconds": 60.0} for e in (1, 2)] + [
        {"kind": "test", "epoch": 2, "accuracy": 9.0}
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["curves", "--run", f"one={tmp_path}", "--reference", "40", str(tmp_path / "curves.png")]) == 0
    clip.save_model(model, tmp_path / "a.safetensors")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "cat.png")
    models = ["--model", f"teacher={tmp_path / 'a.safetensors'}", "--model", f"student={tmp_path / 'a.safetensors'}"]
    assert main(["similarity", *models, "--image", f"cat={tmp_path / 'cat.png'}", str(tmp_path / "maps.png")]) == 0
    assert "student: mean cosine of patch tokens with those of teacher 1.000" in capsys.readouterr().out
    assert all((tmp_path / f"{name}.png").stat().st_size > 2000 for name in ("masks", "curves", "maps"))
    assert main(["curves", "--run", f"one={tmp_path / 'nowhere'}", str(tmp_path / "x.png")]) == 2
