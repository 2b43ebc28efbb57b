"""Weight decay and learning rates by layer."""

import pytest
import torch

import clip
import clip.eva
from trainers.parts.parameter_groups import layer_decay_groups


@pytest.fixture
def model():
    torch.manual_seed(0)
    return clip.CLIP(24, 32, 3, 64, 8, 77, 2048, 48, 2, 2)


def settings(model, *options):
    """(learning rate, weight decay) by parameter name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = layer_decay_groups(model, 0.1, 0.05, *options)
    found = [(names[id(p)], (group.get("lr", 0.1), group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)) == sum(p.requires_grad for p in model.parameters())
    return dict(found)


def test_only_matrices_decay(model):
    found = settings(model)
    assert {rate for rate, _ in found.values()} == {0.1}
    for name, parameter in model.named_parameters():
        assert found[name][1] == (0.05 if parameter.dim() > 1 else 0.0)
    assert found["visual.class_embedding"][1] == found["logit_scale"][1] == 0.0


def test_rates_fall_from_the_top_of_the_image_tower(model):
    found = settings(model, 0.5)
    assert {rate for name, (rate, _) in found.items() if not name.startswith("visual.")} == {0.1}
    rates = {name.removeprefix("visual."): rate for name, (rate, _) in found.items() if name.startswith("visual.")}
    for name, rate in rates.items():
        if name.startswith("transformer.resblocks."):
            assert rate == pytest.approx(0.1 * 0.5 ** (3 - int(name.split(".")[2])))
        else:
            top = name.split(".")[0] in ("proj", "ln_post")
            assert rate == pytest.approx(0.1 if top else 0.1 * 0.5**4), name
    assert "proj" in rates
    assert "conv1.weight" in rates


def test_the_text_tower_has_a_decay_of_its_own(model):
    found = settings(model, 1.0, 0.5)
    assert {rate for name, (rate, _) in found.items() if name.startswith("visual.")} == {0.1}
    expected = {"text_projection": 0, "ln_final.weight": 0, "logit_scale": 0, "token_embedding.weight": 3}
    expected |= {"positional_embedding": 3, "transformer.resblocks.1.ln_1.bias": 1}
    for name, height in expected.items():
        assert found[name][0] == pytest.approx(0.1 * 0.5**height)


def test_an_eva_tower(model):
    tower = clip.eva.EvaVisionTransformer(32, 8, 64, 3, 2, 96, 24)
    model.visual = tower
    found = settings(model, 0.5)
    expected = {"head.weight": 0, "norm.bias": 0, "blocks.2.mlp.w3.weight": 1, "blocks.0.attn.q_bias": 3}
    expected |= {"patch_embed.proj.weight": 4, "pos_embed": 4, "cls_token": 4}
    for name, height in expected.items():
        assert found[f"visual.{name}"][0] == pytest.approx(0.1 * 0.5**height)
    assert found["visual.cls_token"][1] == 0.0
    assert found["visual.pos_embed"][1] == 0.05


def test_what_does_not_learn_is_in_no_group(model):
    model.logit_scale.requires_grad_(False)
    assert "logit_scale" not in settings(model, 0.5, 0.5)


def test_a_resnet_has_no_layers_to_decay_by():
    model = clip.CLIP(24, 64, (1, 1, 1, 1), 16, None, 77, 2048, 48, 2, 2)
    assert settings(model)
    with pytest.raises(ValueError, match="ModifiedResNet has no blocks"):
        layer_decay_groups(model, 0.1, 0.05, 0.75)
