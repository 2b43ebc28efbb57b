"""Exported image towers, loaded strictly by timm."""

import json

import pytest
import torch

import clip
from clip.checkpoints import save_model
from tools.export_timm import export, main, timm_weights

TEXT = {"context_length": 77, "vocab_size": 2048, "transformer_width": 48, "transformer_heads": 2}
TOWER = {"image_resolution": 48, "vision_layers": 3, "vision_width": 64, "vision_patch_size": 8, "vision_heads": 2}


def model(eva=False, **more):
    torch.manual_seed(0)
    numbers = {"embed_dim": 24, **TOWER, **TEXT, "transformer_layers": 1, **more}
    made = clip.new_model(**numbers, rope_grid=16) if eva else clip.new_model(**numbers)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # zeros would hide a missing bias
        for value in made.visual.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return made.eval()


VARIANTS = {
    "plain": {},
    "gelu": {"quick_gelu": False},
    "narrow": {"vision_mlp_width": 96},
    "eva": {"eva": True},
    "eva_odd": {"eva": True, "vision_mlp_width": 170, "image_resolution": 32},
}


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_gives_the_features_of_the_checkpoint(variant, head, tmp_path, rng):
    timm = pytest.importorskip("timm")
    made = model(**VARIANTS[variant])
    save_model(made, tmp_path / "clip.safetensors", {"mean": [0.1, 0.2, 0.3], "std": [1.0, 0.5, 0.25]})
    config = export(str(tmp_path / "clip.safetensors"), tmp_path / "out", head)
    found = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    side = made.visual.input_resolution
    image = torch.randn(2, 3, side, side, generator=rng)
    with torch.no_grad():
        encoded = made.encode_image(image)
        if head:
            torch.testing.assert_close(found(image), encoded.pooled, rtol=1e-5, atol=1e-5)
        # Patches too: timm's final norm and our projection of every token.
        tokens = found.forward_features(image)
        assert tokens.shape == (2, 1 + (side // 8) ** 2, 64)
        visual = made.visual
        projected = visual.head(tokens) if variant.startswith("eva") else tokens @ visual.proj
        torch.testing.assert_close(projected, encoded.tokens, rtol=1e-5, atol=1e-5)
    assert found.default_cfg["mean"] == [0.1, 0.2, 0.3]
    assert found.default_cfg["std"] == [1.0, 0.5, 0.25]
    assert list(found.default_cfg["input_size"]) == config["pretrained_cfg"]["input_size"] == [3, side, side]
    assert found.num_features == config["num_features"] == 64
    # Strictly, without timm's own renaming.
    plain = timm.create_model(
        config["architecture"], pretrained=False, num_classes=config["num_classes"], **config["model_args"]
    )
    plain.load_state_dict(timm_weights(made, head), strict=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_maps_of_features_for_a_detector(tmp_path, rng):
    timm = pytest.importorskip("timm")
    made = model(eva=True)
    save_model(made, tmp_path / "clip.safetensors")
    export(str(tmp_path / "clip.safetensors"), tmp_path / "out", head=False)
    backbone = timm.create_model(
        f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True, out_indices=(0, 2)
    )
    maps = backbone.eval()(torch.randn(1, 3, 48, 48, generator=rng))
    assert [tuple(one.shape) for one in maps] == [(1, 64, 6, 6)] * 2


def test_sizes_of_the_embedded_model(tmp_path, capsys):
    assert main(["emoji-ViT-S/8", "--output", str(tmp_path / "out"), "--no-head"]) == 0
    assert "vit_base_patch16_clip_quickgelu_224, 64x64 pixels, 192 features" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == 0
    assert config["model_args"]["depth"] == 6


def test_what_cannot_be_exported(tmp_path, capsys):
    assert main([str(tmp_path / "none.safetensors"), "--output", str(tmp_path)]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    resnet = clip.new_model(24, 64, (1, 1, 1, 1), 16, None, 77, 2048, 48, 2, 2)
    with pytest.raises(ValueError, match="ModifiedResNet; expected a vision transformer"):
        timm_weights(resnet)
