"""Configuration files of open_clip and transformers: what they say about images, and what is not plain CLIP in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip.archive import CheckpointError

OPEN_CLIP = "open_clip_config.json"
HUGGING_FACE = "config.json"
PIXELS = "preprocessor_config.json"

PLAIN: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        "ls_init_value": None,
        "attentional_pool": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "final_ln_after_pool": False,
        "global_average_pool": False,
        "pool_type": "tok",
        "act_kwargs": None,
        "norm_kwargs": None,
        "timm_model_name": None,
    },
    "text_cfg": {
        "ls_init_value": None,
        "embed_cls": False,
        "no_causal_mask": False,
        "final_ln_after_pool": False,
        "pool_type": "argmax",
        "proj_bias": False,
        "proj_type": "linear",
        "act_kwargs": None,
        "norm_kwargs": None,
        "hf_model_name": None,
        "hf_tokenizer_name": None,
    },
}
"""open_clip settings that change the model without a trace in plain CLIP's weights, with the value plain CLIP has."""
BLOCK = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
HALF = (0.5, 0.5, 0.5)
RESAMPLE: dict[Any, str] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow in transformers' configurations."""
RESIZE = ("shortest", "squash")
"""open_clip's words for the shorter side with a center crop, and for both sides to a square."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def beside(path: Path, name: str) -> dict[str, Any] | None:
    """Content of the file `name` in the folder of `path`; None if there is none."""
    file = path.with_name(name)
    return read_json(file) if file.is_file() else None


def unlike_plain(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of an open_clip configuration that plain CLIP does not have, by name."""
    model = config.get("model_cfg", config)
    other = {key: model[key] for key in ("multimodal_cfg", "init_logit_bias") if model.get(key) is not None}
    for part, plain in PLAIN.items():
        given = model.get(part) or {}
        plain = plain | dict.fromkeys(BLOCK, False)
        other |= {key: given[key] for key in plain if given.get(key, plain[key]) != plain[key]}
    return other


def open_clip_pixels(config: dict[str, Any]) -> dict[str, Any]:
    """mean, std, interpolation and resize of an open_clip configuration, as far as it has them."""
    given = config.get("preprocess_cfg") or {}
    found = {key: tuple(given[key]) for key in ("mean", "std") if given.get(key)}
    if (resize := given.get("resize_mode")) is not None and resize not in RESIZE:
        raise CheckpointError(f"its images are resized by {resize!r}, expected {' or '.join(RESIZE)}")
    return found | _interpolation(given.get("interpolation")) | ({"resize": resize} if resize else {})


def hugging_face_pixels(path: Path) -> dict[str, Any]:
    """The same of the files of transformers in the folder of `path`; without preprocessing, SigLIP's is 0.5 and 0.5
    of squashed images."""
    config = beside(path, PIXELS) or {}
    if not config and str((beside(path, HUGGING_FACE) or {}).get("model_type")).startswith("siglip"):
        return {"mean": HALF, "std": HALF, "resize": "squash"}
    names = {"mean": "image_mean", "std": "image_std"}
    found: dict[str, Any] = {key: tuple(config[name]) for key, name in names.items() if config.get(name)}
    resample = config.get("resample")
    size = config.get("size")
    if isinstance(size, dict) and size.keys() >= {"height", "width"}:
        found["resize"] = "squash"
    return found | _interpolation(RESAMPLE.get(resample, resample))


def _interpolation(name: Any) -> dict[str, Any]:
    if name is None or name == "random":  # drawn anew for each training image
        return {}
    if name not in RESAMPLE.values():
        raise CheckpointError(f"the interpolation of its images is {name!r}, expected {', '.join(RESAMPLE.values())}")
    return {"interpolation": name}


def side_of(config: dict[str, Any]) -> int | None:
    """Side of the images in pixels by a configuration of either kind; None if it does not say one number."""
    model = config.get("model_cfg", config)
    vision = model.get("vision_cfg") or model.get("vision_config") or {}
    side = vision.get("image_size", 224 if "vision_config" in model else None)
    if vision.get("num_patches") and model.get("model_type") == "siglip2":
        return int(vision.get("patch_size", 16) * vision["num_patches"] ** 0.5)
    return side if isinstance(side, int) else None
