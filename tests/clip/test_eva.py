"""The EVA-style tower against timm's, closed forms, and files as the release names them."""

import math

import pytest
import torch
from timm.models.eva import Eva
from torch import nn

import clip
from clip import Prompts
from clip.checkpoints import CheckpointError
from clip.convert import released_heads
from clip.eva import SIZES, EvaVisionTransformer, rotary_angles, rotate
from clip.layers import drop_path
from clip.legacy import as_legacy

TINY = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "heads": 4, "mlp_width": 72, "output_dim": 20}
TO_TIMM = {
    "q_bias": "q_proj.bias",
    "v_bias": "v_proj.bias",
    "mlp.w1": "mlp.fc1_g",
    "mlp.w2": "mlp.fc1_x",
    "mlp.ffn_ln": "mlp.norm",
    "mlp.w3": "mlp.fc2",
}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture
def tower():
    return randomised(EvaVisionTransformer(**TINY))


@pytest.fixture
def reference(tower):
    """timm's model with the same weights."""
    model = Eva(
        img_size=TINY["image_size"],
        patch_size=TINY["patch_size"],
        embed_dim=TINY["width"],
        depth=TINY["layers"],
        num_heads=TINY["heads"],
        mlp_ratio=TINY["mlp_width"] / TINY["width"],
        num_classes=TINY["output_dim"],
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
        global_pool="token",
    )
    weights = tower.state_dict()
    for ours, theirs in TO_TIMM.items():
        weights = {key.replace(ours, theirs): value for key, value in weights.items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture
def student(make_clip):
    """A CLIP whose image tower is EVA-style."""
    return make_clip(rope_grid=16, vision_mlp_width=44)


@pytest.mark.parametrize(
    ("name", "millions"), [("eva-B/16", 86.64), ("eva-L/14@336", 304.65), ("eva-g/14@336", 1013.4)]
)
def test_released_sizes_have_the_parameters_of_the_release(name, millions):
    with torch.device("meta"):
        tower = EvaVisionTransformer(*SIZES[name])
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@torch.no_grad()
def test_equals_timm(tower, reference, images):
    encoded = tower(images)
    torch.testing.assert_close(encoded.pooled, reference(images), rtol=1e-4, atol=1e-5)
    tokens = reference.head(reference.forward_features(images))
    torch.testing.assert_close(encoded.tokens, tokens, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_kept_patches_equal_a_mask_on_the_attention_to_the_others(tower, reference, images):
    keep = torch.tensor([[0, 3, 7, 9], [1, 2, 14, 15], [4, 5, 6, 11]])
    seen = torch.zeros(3, 17).scatter_(1, torch.cat([torch.zeros(3, 1).long(), keep + 1], 1), 1.0)
    mask = torch.where(seen.bool(), 0.0, -math.inf)[:, None, None]  # nobody attends to a patch that is left out
    x = tower.embed(images)
    rope = reference.rope.get_embed()
    for block in reference.blocks:
        x = block(x, rope=rope, attn_mask=mask)
    expected = reference.head(reference.norm(x))[seen.bool()].view(3, 5, -1)
    tokens = tower.embed(images)[seen.bool()].view(3, 5, -1)
    found = tower.encode(tokens, keep=keep)
    torch.testing.assert_close(found.tokens, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_deep_prompts_have_no_position(tower, reference, images):
    """In timm's blocks prompts are further tokens before the patches, which the rotation leaves out."""
    first, deep = torch.randn(2, 48), torch.randn(3, 2, 48)
    x = tower.embed(images)
    x = torch.cat([x[:, :1], first.expand(3, -1, -1), x[:, 1:]], dim=1)
    for i, block in enumerate(reference.blocks):
        block.attn.num_prefix_tokens = 3
        if i == 1:
            x[:, 1:3] = deep
        x = block(x, rope=reference.rope.get_embed())
    expected = reference.head(reference.norm(x))
    found = tower(images, Prompts((first, deep), None))
    torch.testing.assert_close(found.pooled, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.tokens[:, 1:17], expected[:, 3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.tokens[:, 17:], expected[:, 1:3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prompts_and_kept_patches_together(tower, images):
    """Order of the kept patches means nothing: their numbers travel with them."""
    prompts = Prompts((torch.randn(2, 48),), None)
    keep = torch.tensor([2, 5, 11])
    tokens = tower.embed(images)
    one = tower.encode(tokens[:, [0, 3, 6, 12]], prompts, keep)
    other = tower.encode(tokens[:, [0, 12, 3, 6]], prompts, keep[[2, 0, 1]])
    torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.tokens[:, 1:4], other.tokens[:, [2, 3, 1]], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="need their numbers"):
        tower.encode(tokens[:, :4])
    with pytest.raises(ValueError, match="expected \\(3,\\) or \\(3, 3\\)"):
        tower.encode(tokens[:, :4], keep=keep[:2])


def test_rotation_in_complex_numbers(rng):
    side, width, grid = 3, 16, 5
    x = torch.randn(1, 1, side * side, width, generator=rng)
    angles = rotary_angles(side, width, grid)
    found = rotate(x, angles.cos(), angles.sin())[0, 0].double()
    for patch in range(side * side):
        place = (patch // side, patch % side)
        for pair in range(width // 2):
            axis, i = divmod(pair, width // 4)
            angle = place[axis] * grid / side * 10_000 ** (-2 * i / (width / 2))
            value = complex(*x[0, 0, patch, 2 * pair : 2 * pair + 2].tolist()) * complex(
                math.cos(angle), math.sin(angle)
            )
            assert found[patch, 2 * pair].item() == pytest.approx(value.real, abs=1e-5)
            assert found[patch, 2 * pair + 1].item() == pytest.approx(value.imag, abs=1e-5)


def test_scores_depend_on_the_displacement_alone(rng):
    side = 4
    angles = rotary_angles(side, 16)
    q, k = (torch.randn(16, generator=rng).expand(1, 1, side * side, 16) for _ in range(2))
    q, k = rotate(q, angles.cos(), angles.sin())[0, 0], rotate(k, angles.cos(), angles.sin())[0, 0]
    scores = (q @ k.T).view(side, side, side, side)
    torch.testing.assert_close(scores[:3, :3, :3, :3], scores[1:, 1:, 1:, 1:], rtol=1e-4, atol=1e-4)


def test_drop_path_keeps_the_mean_and_drops_whole_rows(tower, images):
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3), 0.25)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2)))
    assert dropped.mean().item() == pytest.approx(1, abs=0.04)
    before = tower(images).pooled
    tower.set_training_options(drop_path=0.5)
    assert [block.drop_path for block in tower.blocks] == [0, 0.25, 0.5]
    assert torch.equal(tower(images).pooled, before)
    assert not torch.equal(tower.train()(images).pooled, before)


@pytest.mark.parametrize("grid", [None, 16])
def test_recomputation_changes_no_gradient(make_clip, images, grid):
    visual = make_clip(rope_grid=grid).visual.train()
    found = []
    for checkpoint in (False, True):
        visual.zero_grad()
        visual.set_training_options(drop_path=0.3, checkpoint=checkpoint)
        torch.manual_seed(0)  # the same rows are dropped
        visual(images).tokens.pow(2).sum().backward()
        found.append([p.grad.clone() for p in visual.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_start_of_training_is_that_of_the_release():
    torch.manual_seed(0)
    tower = EvaVisionTransformer(**(TINY | {"width": 192, "mlp_width": 512}))
    for number, block in enumerate(tower.blocks, start=1):
        assert block.attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
        assert block.mlp.w3.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
    assert tower.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)


@torch.no_grad()
def test_saved_and_loaded(student, images, tmp_path):
    student.visual = EvaVisionTransformer(32, 8, 64, 4, 2, 44, 32, rope_grid=8)  # which the weights do not tell
    randomised(student)
    clip.save_model(student, tmp_path / "student.safetensors")
    loaded, _ = clip.load(tmp_path / "student.safetensors")
    assert isinstance(loaded.visual, EvaVisionTransformer)
    assert (loaded.visual.rope_grid, loaded.visual.heads, loaded.visual.mlp_width) == (8, 2, 44)
    assert torch.equal(loaded.encode_image(images).tokens, student.encode_image(images).tokens)
    torch.save(student.state_dict(), tmp_path / "student.pt")
    weights = torch.load(tmp_path / "student.pt", weights_only=True)
    loaded = clip.build_model(weights, vision_heads=2, rope_grid=8)
    assert torch.equal(loaded.encode_image(images).pooled, student.encode_image(images).pooled)


def released(model: clip.CLIP) -> dict[str, torch.Tensor]:
    """The weights under the release's names, with its tables of positions."""
    own = model.state_dict()
    weights = {key if key.startswith(("visual.", "logit_scale")) else f"text.{key}": own[key] for key in own}
    visual = model.visual
    side, head = visual.input_resolution // visual.patch_size, visual.width // visual.heads
    exponent = torch.arange(0, head // 2, 2)[: head // 4].float() / (head // 2)
    turns = torch.einsum("p,f->pf", torch.arange(side) / side * 16, 1.0 / 10000**exponent).repeat_interleave(2, -1)
    angles = torch.cat([turns[:, None].expand(-1, side, -1), turns[None].expand(side, -1, -1)], -1).reshape(-1, head)
    for place in ("rope", *(f"blocks.{i}.attn.rope" for i in range(len(visual.blocks)))):
        weights |= {f"visual.{place}.freqs_cos": angles.cos(), f"visual.{place}.freqs_sin": angles.sin()}
    return weights


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_released_names_load_strictly(make_clip, images, ids, tmp_path, dtype):
    model = make_clip(rope_grid=16, quick_gelu=False, transformer_heads=1)
    weights = {key: value.to(dtype) for key, value in released(model).items()}
    torch.save(weights, tmp_path / "UTA-tiny.pt")
    loaded, _ = clip.load(tmp_path / "UTA-tiny.pt")
    assert (loaded.visual.heads, loaded.quick_gelu) == (model.visual.heads, False)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for one, other in zip(loaded(images, ids), model(images, ids)):
        torch.testing.assert_close(one, other, **close)
    whole = dict(weights)
    weights["visual.rope.freqs_cos"] = weights["visual.rope.freqs_cos"].roll(1, 0)
    with pytest.raises(CheckpointError, match=r"visual\.rope\.freqs_cos.*not the table"):
        clip.build_model(weights)
    for missing in ("visual.blocks.1.mlp.ffn_ln.weight", "text.ln_final.bias"):
        with pytest.raises(CheckpointError, match="1 missing"):
            clip.build_model({key: value for key, value in whole.items() if key != missing})


def test_released_names_tell_the_activation(make_clip, ids):
    model = make_clip(rope_grid=16, quick_gelu=False, transformer_heads=1)
    built = clip.build_model(released(model))
    assert built.quick_gelu is False
    torch.testing.assert_close(built.encode_text(ids).pooled, model.encode_text(ids).pooled)
    assert clip.build_model(released(model), quick_gelu=True).quick_gelu  # what is said wins
    assert clip.build_model(model.state_dict()).quick_gelu  # OpenAI's names are OpenAI's activation


def test_heads_of_released_widths():
    for size in SIZES.values():
        table = torch.empty(1, size.width // size.heads, device="meta")
        assert released_heads({"visual.cls_token": torch.empty(1, 1, size.width, device="meta")}) == size.heads
        known = {"visual.cls_token": torch.empty(1, 1, size.width), "visual.rope.freqs_cos": table}
        assert released_heads(known) == size.heads


@torch.no_grad()
def test_half_precision_weights(student, images):
    expected = student.encode_image(images).pooled
    clip.convert_weights(student, torch.bfloat16)
    assert student.visual.head.weight.dtype == torch.bfloat16
    assert student.visual.pos_embed.dtype == torch.float32
    found = student.encode_image(images).pooled
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_old_way_of_calling(student, images):
    expected = student.encode_image(images).pooled
    old = as_legacy(student)
    assert torch.equal(old.encode_image(images), expected)
    assert old.visual.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "30 pixels"),
        ({"heads": 5}, "5 heads"),
        ({"heads": 8}, "multiple of 4"),
        ({"drop_path": 1.0}, "in \\[0, 1\\)"),
    ],
)
def test_numbers_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        EvaVisionTransformer(**(TINY | change))
