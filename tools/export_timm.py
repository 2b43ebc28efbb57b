"""Image towers for detection, segmentation and other frameworks: weights under timm's names with a config beside them.

    python -m tools.export_timm CHECKPOINT --output FOLDER [--no-head]

FOLDER gets model.safetensors and config.json, the layout of timm's own models:

    timm.create_model("local-dir:FOLDER", pretrained=True)                           # the features of the checkpoint
    timm.create_model("local-dir:FOLDER", pretrained=True, features_only=True)       # maps for a detector

`model_args` of config.json are the arguments of timm's constructor; other frameworks read the same numbers. Nothing of
timm is needed to export.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from clip.api import find_checkpoint
from clip.checkpoints import CheckpointInfo, load_checkpoint
from clip.eva import EvaVisionTransformer
from clip.model import CLIP, VisionTransformer

EVA_NAMES = {
    "attn.q_bias": "attn.q_proj.bias",
    "attn.v_bias": "attn.v_proj.bias",
    "mlp.ffn_ln": "mlp.norm",
    "mlp.w1": "mlp.fc1_g",
    "mlp.w2": "mlp.fc1_x",
    "mlp.w3": "mlp.fc2",
}
PLAIN_NAMES = {
    "conv1": "patch_embed.proj",
    "positional_embedding": "pos_embed",
    "class_embedding": "cls_token",
    "transformer.resblocks.": "blocks.",
    "ln_pre": "norm_pre",
    "ln_post": "norm",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def timm_weights(model: CLIP, head: bool = True) -> dict[str, Tensor]:
    """Weights of the image tower under timm's names, as copies.

    Args:
        model: the CLIP.
        head: with the projection into the space shared with text, (E, d), as classifier.

    Raises:
        ValueError: the image tower is not a vision transformer.
    """
    visual = model.visual
    if isinstance(visual, EvaVisionTransformer):
        names = EVA_NAMES
    elif isinstance(visual, VisionTransformer):
        names = PLAIN_NAMES
    else:
        raise ValueError(f"the image tower is a {type(visual).__name__}; expected a vision transformer")
    weights = {}
    for key, value in visual.state_dict().items():
        value = value.detach().cpu()
        for own, other in names.items():
            key = key.replace(own, other)
        if key == "proj":
            weights["head.bias"] = value.new_zeros(value.shape[1])
            key, value = "head.weight", value.T
        while key in ("cls_token", "pos_embed") and value.dim() < 3:
            value = value[None]
        weights[key] = value.clone(memory_format=torch.contiguous_format)
    return {key: value for key, value in weights.items() if head or not key.startswith("head.")}


def timm_config(model: CLIP, info: CheckpointInfo, head: bool = True) -> dict[str, Any]:
    """The content of config.json: architecture, the arguments that make it this tower, and the preprocessing."""
    visual = model.visual
    if isinstance(visual, EvaVisionTransformer):
        depth, heads, hidden = len(visual.blocks), visual.heads, visual.mlp_width
        architecture = "eva02_base_patch16_clip_224"
        grid = [visual.rope_grid, visual.rope_grid]
        other: dict[str, Any] = {"scale_attn_inner": False, "ref_feat_shape": grid}
    else:
        assert isinstance(visual, VisionTransformer)
        depth, heads = visual.transformer.layers, visual.transformer.heads
        hidden = visual.get_parameter("transformer.resblocks.0.mlp.c_fc.weight").shape[0]
        architecture = "vit_base_patch16_clip_quickgelu_224" if model.quick_gelu else "vit_base_patch16_clip_224"
        other = {}
    width, classes = visual.width, visual.output_dim if head else 0
    arguments: dict[str, Any] = {
        "img_size": visual.input_resolution,
        "patch_size": visual.patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden / width if hidden % width == 0 else (hidden + 0.5) / width,  # timm rounds it down
        "global_pool": "token",
        **other,  # all further switches are those of the architecture
    }
    side = visual.input_resolution
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": width,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(info.mean),
            "std": list(info.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def export(checkpoint: str, folder: str | Path, head: bool = True) -> dict[str, Any]:
    """Write FOLDER/model.safetensors and FOLDER/config.json of a checkpoint, or of a model's name; returns the config.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is not a CLIP with a vision transformer.
    """
    model, info = load_checkpoint(find_checkpoint(checkpoint))
    weights, config = timm_weights(model, head), timm_config(model, info, head)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    for name, write in (
        ("model.safetensors", lambda path: save_file(weights, path, {"format": "pt"})),
        ("config.json", lambda path: path.write_text(text, encoding="utf-8")),
    ):
        temporary = folder / f".{name}.{os.getpid()}"
        write(temporary)
        os.replace(temporary, folder / name)
    return config


def main(argv: list[str] | None = None) -> int:
    """The command line; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.export_timm", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint of a CLIP, or name of a known one")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder for model.safetensors and config.json"
    )
    parser.add_argument("--no-head", action="store_true", help="without the projection into the space shared with text")
    args = parser.parse_args(argv)
    try:
        config = export(args.checkpoint, args.output, not args.no_head)
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    size = "x".join(map(str, config["pretrained_cfg"]["input_size"][1:]))
    print(f"{args.output}: {config['architecture']}, {size} pixels, {config['num_features']} features")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
