"""The image tower as a dense backbone: against the tower itself, plain loops, and lists of the paper's rates."""

import pytest
import torch
import torch.nn.functional as F

import clip
from clip.eva import EvaVisionTransformer, rotary_angles
from clip.model import VisionTransformer
from dense.backbone import DenseBackbone, WindowAttention, layer_decay_groups, resized_positions
from tests.tolerance import assert_close

HEADS, WIDTH = 2, 32


def tower(kind, layers=4, side=32, patch=8):
    torch.manual_seed(0)
    if kind == "eva":
        return EvaVisionTransformer(side, patch, WIDTH, layers, HEADS, 48, 16).eval()
    return VisionTransformer(side, patch, WIDTH, layers, HEADS, 16).eval()


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_tokens_are_those_of_the_tower(kind, rng):
    image = torch.randn(2, 3, 32, 32, generator=rng)
    with torch.no_grad():
        expected = tower(kind)(image).tokens[:, 1:]
        found = DenseBackbone(tower(kind), 8).tokens(image)
    assert_close(found.flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_any_size_gives_four_strides_of_the_padded_size(kind):
    found = DenseBackbone(tower(kind), 12)(torch.zeros(2, 3, 40, 70))
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        "p2": (2, 12, 16, 24),
        "p3": (2, 12, 8, 12),
        "p4": (2, 12, 4, 6),
        "p5": (2, 12, 2, 3),
    }


def test_positions_of_another_grid_are_interpolated():
    own = DenseBackbone(tower("clip"), 8).tower
    table = own.positions
    assert torch.equal(resized_positions(own, 4, 4), table)
    with torch.no_grad():  # a table that grows from row to row, and not from column to column
        table[1:] = torch.arange(4.0).repeat_interleave(4)[:, None]
        rows = resized_positions(own, 8, 4)[1:].view(8, 4, WIDTH)
    assert (rows == rows[:, :1, :1]).all()
    assert (rows[1:] > rows[:-1]).all()
    assert_close(rows + rows.flip(0), torch.full_like(rows, 3.0))


def test_rotary_angles_of_a_rectangle():
    found = rotary_angles((2, 3), 8, 16).view(2, 3, 4)
    for y in range(2):
        for x in range(3):
            place = torch.tensor([y / 2 * 16] * 2 + [x / 3 * 16] * 2)
            assert_close(found[y, x], place * torch.tensor([1.0, 0.01, 1.0, 0.01]))
    assert torch.equal(rotary_angles((3, 3), 8), rotary_angles(3, 8))


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_a_window_sees_itself_only(kind, rng):
    """Against a loop over the windows of a grid of 3 x 5, padded with zeros to 4 x 6."""
    block = tower(kind).blocks[0]
    window = WindowAttention(block.attn, 2)
    window.grid = (3, 5)
    x = torch.randn(2, 15, WIDTH, generator=rng)
    angles = rotary_angles((3, 5), WIDTH // HEADS)
    extra = (angles.cos(), angles.sin()) if kind == "eva" else (None,)
    with torch.no_grad():
        found = window(x, *extra).view(2, 3, 5, WIDTH)
        padded = F.pad(x.view(2, 3, 5, -1), (0, 0, 0, 1, 0, 1))
        turns = [F.pad(e.view(3, 5, -1), (0, 0, 0, 1, 0, 1)) for e in extra if e is not None]
        for y in (0, 2):
            for k in (0, 2, 4):
                part = [turn[y : y + 2, k : k + 2].reshape(4, -1) for turn in turns]
                alone = block.attn(padded[:, y : y + 2, k : k + 2].reshape(2, 4, -1), *part).view(2, 2, 2, -1)
                place = found[:, y : y + 2, k : k + 2]
                assert_close(place, alone[:, : place.shape[1], : place.shape[2]])


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_windows_stand_between_global_blocks_and_everything_learns(kind):
    backbone = DenseBackbone(tower(kind, layers=8), 8, window=3, drop_path=0.1, checkpoint=True).train()
    assert backbone.windows == [0, 2, 4, 6]
    sum(one.square().sum() for one in backbone(torch.ones(2, 3, 64, 32)).values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert (
        frozen
        == {
            "eva": {"tower.cls_token", "tower.head.weight", "tower.head.bias"},
            "clip": {"tower.class_embedding", "tower.proj"},
        }[kind]
    )


def test_a_window_as_large_as_the_image_is_attention_without_a_class_token(rng):
    image = torch.randn(1, 3, 32, 32, generator=rng)
    with torch.no_grad():
        wide = DenseBackbone(tower("clip", layers=8), 8, window=4).encode(image).flatten(2).transpose(1, 2)
        plain = tower("clip", layers=8)
        x = plain.ln_pre(plain.embed(image)[:, 1:])
        for block in plain.blocks:
            x = block(x)
    assert_close(wide, plain.ln_post(x))


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_recomputed_blocks_have_the_same_gradients(kind, rng):
    image, gradients = torch.randn(2, 3, 32, 32, generator=rng), []
    for again in (False, True):
        torch.manual_seed(3)
        backbone = DenseBackbone(tower(kind), 8, drop_path=0.5, checkpoint=again).train()
        torch.manual_seed(5)
        backbone.encode(image).square().mean().backward()
        gradients.append(backbone.tower.positions.grad)
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("kind", ["eva", "clip"])
def test_values_mix_nothing(kind, rng):
    """The last block on values against its parts: projection of the values, residual, MLP."""
    image = torch.randn(1, 3, 32, 32, generator=rng)
    backbone, seen = DenseBackbone(tower(kind), 8), []
    last = backbone.tower.blocks[-1]
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        found = backbone.encode(image, values=True).flatten(2).transpose(1, 2)
        x = seen[0].view(1, 16, WIDTH)
        if kind == "eva":
            value = F.linear(last.norm1(x), last.attn.v_proj.weight, last.attn.v_bias)
            x = x + last.attn.proj(value)
            expected = backbone.tower.norm(x + last.mlp(last.norm2(x)))
        else:
            weight, bias = last.attn.in_proj_weight[2 * WIDTH :], last.attn.in_proj_bias[2 * WIDTH :]
            x = x + last.attn.out_proj(F.linear(last.ln_1(x), weight, bias))
            expected = backbone.tower.ln_post(x + last.mlp(last.ln_2(x)))
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("layers", "decay", "drop", "rates"),
    [
        (12, 0.85, 0.15, {0: 0.85**12, 5: 0.85**7, 11: 0.85}),  # ADE20K, base and large
        (24, 0.9, 0.2, {0: 0.9**24, 11: 0.9**13, 23: 0.9}),
        (12, 0.7, 0.1, {0: 0.7**12, 11: 0.7}),  # COCO
        (24, 0.8, 0.4, {0: 0.8**24, 23: 0.8}),
    ],
)
def test_rates_of_base_and_large(layers, decay, drop, rates):
    network = torch.nn.Sequential(DenseBackbone(tower("eva", layers), 8, drop_path=drop), torch.nn.Conv2d(8, 2, 1))
    groups = layer_decay_groups(network, 6e-5, 0.05, decay)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(p.requires_grad for p in network.parameters())
    backbone = network[0]
    for number, share in rates.items():
        block = backbone.tower.blocks[number]
        assert found[id(block.mlp.w1.weight)] == pytest.approx((6e-5 * share, 0.05))
        assert found[id(block.attn.q_bias)] == pytest.approx((6e-5 * share, 0.0))
        assert block.drop_path == pytest.approx(drop * number / (layers - 1))
    lowest = 6e-5 * decay ** (layers + 1)
    assert found[id(backbone.tower.pos_embed)] == pytest.approx((lowest, 0.0))  # a matrix without weight decay
    assert found[id(backbone.tower.patch_embed.proj.weight)] == pytest.approx((lowest, 0.05))
    for parameter in (network[1].weight, backbone.levels["p3"][0].weight):
        assert found[id(parameter)] == pytest.approx((6e-5, 0.05))
    assert len(groups) == 2 * (layers + 2)


def test_patches_of_14_become_16():
    pytest.importorskip("timm")
    backbone = DenseBackbone(tower("eva", side=56, patch=14), 8)
    assert backbone.patch_size == 16
    assert {name: one.shape[-1] for name, one in backbone(torch.zeros(1, 3, 64, 64)).items()}["p4"] == 4


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="patch_size is 12, expected one of 4, 8, 16, 32"):
        DenseBackbone(tower("eva"), 8, patch_size=12)
    with pytest.raises(ValueError, match="window is -1"):
        DenseBackbone(tower("eva"), 8, window=-1)
    resnet = clip.CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 2048, 16, 2, 1)
    with pytest.raises(ValueError, match=r"the image tower is a ModifiedResNet; a dense backbone needs"):
        DenseBackbone(resnet)
