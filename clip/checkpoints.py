"""Checkpoint files to models and back: which activation, how many heads, which normalisation of pixels.

What the weights cannot tell is read from what lies with them. The activation is, in this order:

1. the argument ``quick_gelu``, if it is given;
2. the file's own metadata, if :func:`save_model` wrote it;
3. for Hugging Face names: ``hidden_act`` of ``config.json`` beside the file;
4. for files of the UTA release (an EVA-style image tower beside a text tower under ``text.``): GELU, as EVA-CLIP has;
5. for open_clip files: ``quick_gelu`` of ``open_clip_config.json`` beside the file (absent there means GELU);
6. QuickGELU for TorchScript archives and for pickles under OpenAI's names, which is what OpenAI publishes. Where such a
   pickle carries none of OpenAI's marks (fp16 weights, ``input_resolution`` beside them) a warning says so.

A file that open_clip or transformers certainly wrote, without its configuration, is an error: the two activations give
different features and nothing in the weights tells them apart. open_clip's marks are a text tower under ``text.``, a
file name that begins with ``open_clip``, and safetensors under OpenAI's names (OpenAI published none).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from clip.archive import CheckpointError, RawFile, read_file
from clip.build import build_model
from clip.convert import OPENAI_NUMBERS, StateDict, layout, refuse_other_families, released_heads, unwrap
from clip.eva import ROPE_GRID, EvaVisionTransformer
from clip.model import CLIP, HEAD_WIDTH

logger = logging.getLogger(__name__)

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
FILES_OF_A_FOLDER = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
HF_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
OPEN_CLIP_PLAIN: dict[str, dict[str, Any]] = {
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
    },
}
"""open_clip settings that change the network without a trace in plain CLIP's weights, with the value plain CLIP has."""
OPEN_CLIP_BLOCK = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


class CheckpointInfo(NamedTuple):
    """Metadata that the weights do not contain.

    Attributes:
        quick_gelu: QuickGELU or GELU; None where the source does not say.
        vision_heads: heads of the image tower; None for width // 64.
        transformer_heads: heads of the text tower; None for width // 64.
        mean: pixel mean per channel of the preprocessing, for pixels in [0, 1].
        std: pixel standard deviation per channel.
        rope_grid: of an EVA-style image tower (:class:`clip.eva.EvaVisionTransformer`), others have none.
    """

    quick_gelu: bool | None = None
    vision_heads: int | None = None
    transformer_heads: int | None = None
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    rope_grid: int = ROPE_GRID


def load_checkpoint(path: Path, quick_gelu: bool | None = None) -> tuple[CLIP, CheckpointInfo]:
    """The model in a checkpoint file or in a Hugging Face folder.

    Args:
        path: the file or folder.
        quick_gelu: the activation, where the source does not tell it or tells it wrongly.

    Returns:
        The fp32 model in evaluation mode, and the info it was built from.

    Raises:
        FileNotFoundError: no such file, or no weights in the folder.
        ValueError: the file cannot be read safely, does not fit, or does not tell its activation.
    """
    path = _file_in(path)
    raw = read_file(path)
    try:
        weights = unwrap(raw.content)
        refuse_other_families(weights)
        info = _info(path, raw, weights)
        if quick_gelu is not None:
            info = info._replace(quick_gelu=quick_gelu)
        if info.quick_gelu is None:
            raise CheckpointError(
                "the weights do not tell QuickGELU from GELU and no configuration lies beside them: give "
                "quick_gelu=True (OpenAI's weights, open_clip models named *-quickgelu) or quick_gelu=False (other "
                "open_clip models), or put its config.json (transformers) or open_clip_config.json there"
            )
        model = build_model(weights, None, info.quick_gelu, info.vision_heads, info.transformer_heads, info.rope_grid)
        return model, info
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_model(
    model: CLIP, path: str | Path, metadata: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes a model as safetensors under OpenAI's names; ``clip.load`` reads it back strictly.

    Args:
        model: the model.
        path: file to write; a temporary file beside it is renamed at the end.
        metadata: more entries for the header, values as text or JSON values. The activation and the numbers of heads
            are added. ``mean`` and ``std`` (three numbers each) become the preprocessing of ``clip.load``.
        dtype: type of the stored matrices, such as ``torch.float16``; vectors and the logit scale stay fp32, because
            they are small and sensitive. None stores every weight as it is.

    Raises:
        ValueError: the metadata contradict the model.
    """
    path = Path(path)
    info: dict[str, Any] = {
        "format": "pt",
        "quick_gelu": model.quick_gelu,
        "vision_heads": model.visual.heads,
        "transformer_heads": model.transformer.heads,
    }
    if isinstance(model.visual, EvaVisionTransformer):
        info["rope_grid"] = model.visual.rope_grid
    for key, value in (metadata or {}).items():
        if key in info and _text(value) != _text(info[key]):
            raise ValueError(f"metadata say {key} = {value!r}, the model has {info[key]!r}")
        info[key] = value
    weights = {}
    for key, value in model.state_dict().items():
        stored = value.detach().cpu()
        if dtype is not None and stored.is_floating_point():
            stored = stored.to(dtype if stored.dim() > 1 else torch.float32)
        weights[key] = stored.clone(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        save_file(weights, temporary, {key: _text(value) for key, value in info.items()})
        _sort_metadata(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sort_metadata(path: Path) -> None:
    """Order the metadata of a file of safetensors, whose writer has them in another order in every process, so that
    equal models become equal files."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            return  # texts that the writer spells otherwise: any order is right
        file.seek(8)
        file.write(text.ljust(size))


def _info(path: Path, raw: RawFile, weights: StateDict) -> CheckpointInfo:
    if "quick_gelu" in raw.metadata:
        return _info_of_metadata(raw.metadata)
    names = layout(weights)
    if names == "uta":
        return CheckpointInfo(quick_gelu=False, vision_heads=released_heads(weights))
    if names == "huggingface":
        return _info_of_huggingface(path.parent)
    certain = names == "open_clip" or raw.kind == "safetensors" or path.name.startswith("open_clip")
    config = path.with_name("open_clip_config.json")
    if certain or (config.is_file() and raw.kind == "pickle"):
        return _info_of_open_clip(config, weights)
    marks = any(key in weights for key in OPENAI_NUMBERS) or any(v.dtype == torch.float16 for v in weights.values())
    if raw.kind == "pickle" and not marks:
        logger.warning(
            "%s does not tell its activation: taken as OpenAI's QuickGELU; give quick_gelu=False for GELU", path
        )
    return CheckpointInfo(quick_gelu=True)


def _info_of_metadata(metadata: dict[str, str]) -> CheckpointInfo:
    values = {key: json.loads(metadata[key]) for key in CheckpointInfo._fields if key in metadata}
    for key in ("mean", "std"):
        if key in values:
            values[key] = tuple(float(v) for v in values[key])
    return CheckpointInfo(**values)


def _info_of_huggingface(folder: Path) -> CheckpointInfo:
    if not (folder / "config.json").is_file():
        return CheckpointInfo()
    config = _read_json(folder / "config.json")
    towers = [config.get(key) or {} for key in ("vision_config", "text_config")]
    activations = {tower.get("hidden_act", "quick_gelu") for tower in towers}
    if len(activations) != 1 or not activations <= set(HF_ACTIVATIONS):
        raise CheckpointError(
            f"config.json has the activations {sorted(activations)}; "
            f"expected one of {sorted(HF_ACTIVATIONS)} in both towers"
        )
    eps = {tower.get("layer_norm_eps", 1e-5) for tower in towers}
    if eps != {1e-5}:
        raise CheckpointError(f"config.json has layer_norm_eps {sorted(eps)}; CLIP has 1e-5")
    info = CheckpointInfo(
        HF_ACTIVATIONS[activations.pop()],
        towers[0].get("num_attention_heads"),
        towers[1].get("num_attention_heads"),
    )
    pixels = folder / "preprocessor_config.json"
    if pixels.is_file():
        info = _with_pixels(info, _read_json(pixels), "image_mean", "image_std")
    return info


def _info_of_open_clip(path: Path, weights: StateDict) -> CheckpointInfo:
    if not path.is_file():
        return CheckpointInfo()
    config = _read_json(path)
    model = config.get("model_cfg", config)
    for part, plain in OPEN_CLIP_PLAIN.items():
        given = model.get(part) or {}
        plain = plain | dict.fromkeys(OPEN_CLIP_BLOCK, False)
        other = {key: given[key] for key in plain if given.get(key, plain[key]) != plain[key]}
        if other:
            raise CheckpointError(f"{path.name} has {part} {other}, which plain CLIP does not have")
    vision = model.get("vision_cfg") or {}
    head_width = vision.get("head_width", HEAD_WIDTH)
    resnet = isinstance(vision.get("layers"), list)
    conv = weights.get("visual.attnpool.k_proj.weight" if resnet else "visual.conv1.weight")
    heads = None if conv is None else conv.shape[0] // head_width
    info = CheckpointInfo(bool(model.get("quick_gelu", False)), heads, (model.get("text_cfg") or {}).get("heads"))
    return _with_pixels(info, config.get("preprocess_cfg") or {}, "mean", "std")


def _with_pixels(info: CheckpointInfo, config: dict[str, Any], mean: str, std: str) -> CheckpointInfo:
    return info._replace(mean=tuple(config.get(mean, info.mean)), std=tuple(config.get(std, info.std)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES_OF_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"the folder {path} has none of {', '.join(FILES_OF_A_FOLDER)}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
