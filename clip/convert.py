"""Named conversions of state dicts to OpenAI's parameter names, and the architecture their shapes tell."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from clip.archive import CheckpointError
from clip.eva import SIZES, rotary_angles
from clip.resnet import REDUCTION

StateDict = dict[str, Tensor]

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers OpenAI's archives keep beside the weights."""
EVA_MARK = "visual.patch_embed.proj.weight"
"""Only an EVA-style image tower has it."""
SHOWN = 5
"""Names shown in an error message."""

OTHER_FAMILIES = (
    (r"logit_bias", "a SigLIP model"),
    (r"vision_model\.head\.probe", "a SigLIP model"),
    (r"text_decoder\..+|text\.cls_emb", "a CoCa model"),
    (r"text\.transformer\.(embeddings|encoder)\..+", "an open_clip model with a text tower of Hugging Face"),
    (r"visual\.trunk\.blocks\.0\.(mlp\.fc1_g\.weight|attn\.q_bias)", "an EVA-CLIP model of open_clip"),
    (r"visual\.trunk\.attn_pool\.latent", "a PE-Core model"),
    (r"visual\.trunk\.patch_embed\.backbone\.stages\..+", "a ViTamin model"),
    (r"visual\.trunk\.(stem\.0\.conv_kxk|patch_embed\.backbone\.0\.bn)\..+", "a MobileCLIP model"),
    (r"visual\.trunk\..+", "an open_clip model with an image tower of timm"),
)
"""Pattern of a parameter name -> the family that has it and plain CLIP does not. The first that fits counts."""

HF_TOP = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
HF_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
HF_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
HF_IGNORED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def unwrap(content: dict[str, Any]) -> StateDict:
    """The weights inside a training checkpoint: its ``state_dict`` entry, without DistributedDataParallel's prefix.

    Raises:
        CheckpointError: an entry is not a tensor of stored numbers, or has no name.
    """
    weights = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    if nameless := [key for key in weights if not isinstance(key, str)]:
        raise CheckpointError(f"a state dict has names for its tensors, this one has {nameless[0]!r}")
    if weights and all(key.startswith("module.") for key in weights):
        weights = {key[len("module.") :]: value for key, value in weights.items()}
    other = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(f"a state dict holds tensors only; these entries do not: {_some(other)}")
    odd = [key for key, v in weights.items() if v.layout != torch.strided or v.is_meta or v.is_quantized]
    if odd:
        raise CheckpointError(f"weights are sparse, quantized or have no values, expected dense numbers: {_some(odd)}")
    return dict(weights)


def refuse_other_families(weights: StateDict) -> None:
    """Raises CheckpointError with the family's name for weights of a relative of CLIP that is another network."""
    for pattern, family in OTHER_FAMILIES:
        mark = next((key for key in weights if re.fullmatch(pattern, key)), None)
        if mark is not None:
            raise CheckpointError(
                f"this is {family} (it has {mark}), and no configuration says which: give the architecture of "
                "open_clip with the file, such as MODEL.BACKBONE.NAME ViT-B-16-SigLIP/FILE, or put its "
                "open_clip_config.json (transformers: config.json) beside the file"
            )


def layout(weights: StateDict) -> str:
    """Whose parameter names these are: "openai", "open_clip" (text tower under ``text.``), "uta" or "huggingface".

    "uta" is open_clip's text tower beside an EVA-style image tower. A file that :func:`clip.save_model` wrote has the
    names "openai", whatever its image tower.

    Raises:
        CheckpointError: none of them.
    """
    if "token_embedding.weight" in weights:
        return "openai"
    if "text.token_embedding.weight" in weights:
        return "uta" if EVA_MARK in weights else "open_clip"
    if "text_model.embeddings.token_embedding.weight" in weights:
        return "huggingface"
    raise CheckpointError(
        "these are not CLIP weights: none of token_embedding.weight (OpenAI, open_clip), text.token_embedding.weight "
        "(open_clip) and text_model.embeddings.token_embedding.weight (Hugging Face) is among the "
        f"{len(weights)} entries {_some(list(weights))}"
    )


def from_openai(weights: StateDict) -> StateDict:
    """OpenAI's names: drops the numbers stored beside the weights."""
    return {key: value for key, value in weights.items() if key not in OPENAI_NUMBERS}


def from_open_clip(weights: StateDict) -> StateDict:
    """open_clip's names with a separate text tower: takes the prefix ``text.`` away."""
    return {key[len("text.") :] if key.startswith("text.") else key: value for key, value in weights.items()}


def from_huggingface(weights: StateDict) -> StateDict:
    """``transformers.CLIPModel``: joins query, key and value (in this order), transposes the projections, renames.

    Raises:
        CheckpointError: a name that CLIPModel does not have, or a query, key or value is missing.
    """
    out: StateDict = {}
    unknown = []
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        block = re.fullmatch(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if key in HF_TOP:
            out[HF_TOP[key]] = value
        elif key in HF_TRANSPOSED:
            out[HF_TRANSPOSED[key]] = value.t().contiguous()
        elif block is not None:
            tower, index, name, kind = block.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{index}."
            if name in HF_BLOCK:
                out[f"{prefix}{HF_BLOCK[name]}.{kind}"] = value
            elif name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                parts.setdefault(f"{prefix}attn.in_proj_{kind}", {})[name[len("self_attn.")]] = value
            else:
                unknown.append(key)
        elif key not in HF_IGNORED:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"names that a Hugging Face CLIPModel does not have: {_some(unknown)}")
    for key, found in parts.items():
        if set(found) != set("qkv"):
            raise CheckpointError(f"{key} needs query, key and value; found only {sorted(found)}")
        out[key] = torch.cat([found["q"], found["k"], found["v"]])
    return out


def from_uta(weights: StateDict) -> StateDict:
    """The UTA release's names: open_clip's text tower; tables of rotary positions are compared and left out.

    Raises:
        CheckpointError: a table of the file differs from what the tower computes itself.
    """
    out = {}
    for key, value in from_open_clip(weights).items():
        table = re.fullmatch(r"visual\.(?:blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)", key)
        if table is None:
            out[key] = value
        else:
            _check_table(key, value, table.group(1))
    return out


def released_heads(weights: StateDict) -> int | None:
    """Heads of a released EVA-style image tower: from its table of rotary positions, else from its known widths.

    Returns:
        The number of heads; None where neither tells it.
    """
    width = weights["visual.cls_token"].shape[-1]
    table = weights.get("visual.rope.freqs_cos")
    if table is not None and table.dim() == 2:
        return width // table.shape[1]
    return {size.width: size.heads for size in SIZES.values()}.get(width)


def _check_table(key: str, value: Tensor, kind: str) -> None:
    """Each angle stands twice in a row of a released table, for both members of its pair."""
    positions, width = value.shape if value.dim() == 2 else (0, 0)
    side = math.isqrt(positions)
    if positions and side * side == positions and width % 4 == 0:
        angles = rotary_angles(side, width).repeat_interleave(2, dim=1)
        own = angles.cos() if kind == "cos" else angles.sin()
        if torch.allclose(value.float().cpu(), own, atol=1e-2):  # tables of half precision are rounded
            return
    raise CheckpointError(f"{key}, shape {tuple(value.shape)}, is not the table of rotary positions of this tower")


CONVERSIONS = {
    "openai": from_openai,
    "open_clip": from_open_clip,
    "uta": from_uta,
    "huggingface": from_huggingface,
}


def architecture(weights: StateDict) -> dict[str, Any]:
    """The constructor arguments of :class:`clip.CLIP` that the shapes tell: all but activation and heads.

    Args:
        weights: OpenAI's names.

    Returns:
        Arguments; ``transformer_heads``, ``vision_heads`` and the value of ``rope_grid`` are left out.

    Raises:
        CheckpointError: a weight that tells a number is missing or has another number of dimensions.
    """
    shapes = _Shapes(weights)
    context, width = shapes.of("positional_embedding", 2)
    numbers: dict[str, Any] = {
        "embed_dim": shapes.of("text_projection", 2)[1],
        "context_length": context,
        "vocab_size": shapes.of("token_embedding.weight", 2)[0],
        "transformer_width": width,
        "transformer_layers": _count(weights, r"transformer\.resblocks\.(\d+)\."),
        "transformer_mlp_width": shapes.of("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    }
    if "visual.layer1.0.conv1.weight" in weights:
        side = _side(shapes.of("visual.attnpool.positional_embedding", 2)[0])
        return numbers | {
            "vision_layers": tuple(_count(weights, rf"visual\.layer{i}\.(\d+)\.") for i in range(1, 5)),
            "vision_width": shapes.of("visual.layer1.0.conv1.weight", 4)[0],
            "vision_patch_size": None,
            "image_resolution": REDUCTION * side,
        }
    if EVA_MARK in weights:
        width, _, patch, _ = shapes.of(EVA_MARK, 4)
        return numbers | {
            "vision_layers": _count(weights, r"visual\.blocks\.(\d+)\."),
            "vision_width": width,
            "vision_patch_size": patch,
            "vision_mlp_width": shapes.of("visual.blocks.0.mlp.w1.weight", 2)[0],
            "image_resolution": patch * _side(shapes.of("visual.pos_embed", 3)[1]),
        }
    width, _, patch, _ = shapes.of("visual.conv1.weight", 4)
    return numbers | {
        "vision_layers": _count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
        "vision_width": width,
        "vision_patch_size": patch,
        "vision_mlp_width": shapes.of("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "image_resolution": patch * _side(shapes.of("visual.positional_embedding", 2)[0]),
    }


def check_equal(expected: StateDict, found: StateDict) -> None:
    """Compares names, shapes and kinds of numbers.

    Raises:
        CheckpointError: lists the first missing, unexpected, misshaped and mistyped weights.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    typed = [
        f"{key} {found[key].dtype}"
        for key, value in expected.items()
        if key in found and found[key].is_floating_point() != value.is_floating_point()
    ]
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shaped),
            ("of another type", typed),
        )
        if names
    ]
    if problems:
        raise CheckpointError("the weights do not fit this CLIP; " + "; ".join(problems))


class _Shapes:
    def __init__(self, weights: StateDict) -> None:
        self.weights = weights

    def of(self, key: str, dimensions: int) -> tuple[int, ...]:
        if key not in self.weights:
            raise CheckpointError(f"the weights do not fit a CLIP: {key} is missing")
        shape = tuple(self.weights[key].shape)
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(
                f"the weights do not fit a CLIP: {key} has shape {shape}, not {dimensions} dimensions"
            )
        return shape


def _count(weights: StateDict, pattern: str) -> int:
    found = {int(match.group(1)) for match in (re.match(pattern, key) for key in weights) if match}
    return max(found, default=-1) + 1


def _side(positions: int) -> int:
    side = math.isqrt(max(0, positions - 1))
    if side < 1 or side * side != positions - 1:
        raise CheckpointError(f"{positions} image positions are not a class token and a square of patches")
    return side


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
