"""The same weights in open_clip, in transformers and here: the same features."""

import clip_reference as reference
import pytest
import torch

import clip
from clip.convert import architecture, from_huggingface, from_open_clip

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

VOCAB = 600
SHAPES = {
    "ViT-B/32": {"image_size": 224, "patch_size": 32, "width": 128, "layers": 3},
    "ViT-B/16": {"image_size": 224, "patch_size": 16, "width": 128, "layers": 2},
    "ViT-L/14": {"image_size": 224, "patch_size": 14, "width": 192, "layers": 4},
    "RN50": {"image_size": 224, "width": 16, "layers": [3, 4, 6, 3]},
    "RN50x4": {"image_size": 288, "width": 20, "layers": [4, 6, 10, 6]},
}
TEXT = {"context_length": 77, "vocab_size": VOCAB, "width": 128, "heads": 2, "layers": 3}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def inputs(side):
    rng = torch.Generator().manual_seed(5)
    texts = ["a photo of a cat.", "the quick brown fox jumps over the lazy dog, twice", ""]
    return torch.randn(2, 3, side, side, generator=rng), clip.tokenize(texts, vocab_size=VOCAB)


def open_clip_model(shape, quick_gelu, custom_text=False):
    kind = open_clip.model.CustomTextCLIP if custom_text else open_clip.model.CLIP
    vision = {"head_width": 64 if shape != "RN50x4" else 32} | SHAPES[shape]
    return reference.randomised(kind(64, vision, TEXT, quick_gelu=quick_gelu)).eval()


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("shape", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50"])
def test_features_equal_open_clip(shape, quick_gelu):
    theirs = open_clip_model(shape, quick_gelu)
    ours = clip.build_model(theirs.state_dict(), quick_gelu=quick_gelu)
    image, ids = inputs(SHAPES[shape]["image_size"])
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(image).pooled, theirs.encode_image(image), **CLOSE)
        torch.testing.assert_close(ours.encode_text(ids).pooled, theirs.encode_text(ids), **CLOSE)
        other = clip.build_model(theirs.state_dict(), quick_gelu=not quick_gelu)
        assert not torch.allclose(other.encode_text(ids).pooled, theirs.encode_text(ids), atol=1e-3)


def test_open_clip_with_a_separate_text_tower():
    theirs = open_clip_model("ViT-B/32", True, custom_text=True)
    weights = from_open_clip(theirs.state_dict())
    assert "text_projection" in weights
    assert not any(key.startswith("text.") for key in weights)
    ours = clip.build_model(theirs.state_dict())
    image, ids = inputs(224)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(image).pooled, theirs.encode_image(image), **CLOSE)
        torch.testing.assert_close(ours.encode_text(ids).pooled, theirs.encode_text(ids), **CLOSE)


def huggingface_model(shape, hidden_act="quick_gelu", heads=2):
    vision = SHAPES[shape]
    towers = {"hidden_act": hidden_act, "num_attention_heads": heads}
    config = transformers.CLIPConfig(
        text_config=towers
        | {
            "vocab_size": VOCAB,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "bos_token_id": VOCAB - 2,
            "eos_token_id": VOCAB - 1,
        },
        vision_config=towers
        | {
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // 64 if heads == 2 else heads,
            "image_size": 224,
            "patch_size": vision["patch_size"],
        },
        projection_dim=64,
    )
    return reference.randomised(transformers.CLIPModel(config)).eval()


def huggingface_features(model, image, ids):
    vision = model.vision_model(pixel_values=image).pooler_output
    text = model.text_model(input_ids=ids).pooler_output
    return model.visual_projection(vision), model.text_projection(text)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", ["ViT-B/32", "ViT-B/16", "ViT-L/14"])
def test_features_equal_transformers(shape, hidden_act):
    theirs = huggingface_model(shape, hidden_act)
    ours = clip.build_model(theirs.state_dict(), quick_gelu=hidden_act == "quick_gelu")
    image, ids = inputs(224)
    with torch.no_grad():
        expected_image, expected_text = huggingface_features(theirs, image, ids)
        torch.testing.assert_close(ours.encode_image(image).pooled, expected_image, **CLOSE)
        torch.testing.assert_close(ours.encode_text(ids).pooled, expected_text, **CLOSE)


def test_huggingface_conversion_is_named_weight_by_weight():
    weights = huggingface_model("ViT-B/32").state_dict()
    converted = from_huggingface(weights | {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    q, k, v = (weights[f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv")
    assert torch.equal(converted["visual.transformer.resblocks.1.attn.in_proj_weight"], torch.cat([q, k, v]))
    assert torch.equal(converted["visual.proj"], weights["visual_projection.weight"].t())
    assert torch.equal(converted["text_projection"], weights["text_projection.weight"].t())
    assert converted.keys() == clip.build_model(weights).state_dict().keys()
    with pytest.raises(ValueError, match=r"vision_model\.adapter"):
        from_huggingface(weights | {"vision_model.adapter.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoder\.layers\.0\.self_attn\.rotary"):
        from_huggingface(weights | {"text_model.encoder.layers.0.self_attn.rotary.weight": torch.zeros(1)})
    del weights["text_model.encoder.layers.2.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"found only \['q', 'v'\]"):
        from_huggingface(weights)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_architecture_is_read_from_the_weights(shape):
    theirs = open_clip_model(shape, True)
    numbers = architecture(theirs.state_dict())
    wanted = SHAPES[shape]
    assert numbers["image_resolution"] == wanted["image_size"]
    assert numbers["vision_width"] == wanted["width"]
    assert numbers["vision_patch_size"] == wanted.get("patch_size")
    layers = wanted["layers"]
    assert numbers["vision_layers"] == (tuple(layers) if isinstance(layers, list) else layers)
    assert (numbers["context_length"], numbers["vocab_size"], numbers["embed_dim"]) == (77, VOCAB, 64)
    assert (numbers["transformer_width"], numbers["transformer_layers"]) == (128, 3)


def test_other_perceptron_widths_are_read_from_the_weights():
    vision = SHAPES["ViT-B/32"] | {"mlp_ratio": 2.5, "head_width": 32}
    theirs = reference.randomised(open_clip.model.CLIP(64, vision, TEXT | {"mlp_ratio": 3.0, "heads": 4})).eval()
    ours = clip.build_model(theirs.state_dict(), quick_gelu=False, vision_heads=4, transformer_heads=4)
    image, ids = inputs(224)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(image).pooled, theirs.encode_image(image), **CLOSE)
        torch.testing.assert_close(ours.encode_text(ids).pooled, theirs.encode_text(ids), **CLOSE)
