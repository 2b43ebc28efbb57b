"""Checkpoint files to models and back: which activation, how many heads, which normalisation of pixels.

What the weights cannot tell is read from what lies with them. The activation is, in this order:

1. the argument ``quick_gelu``, if it is given;
2. the file's own metadata, if :func:`save_model` wrote it;
3. for Hugging Face names: ``hidden_act`` of ``config.json`` beside the file;
4. for files of the UTA release (an EVA-style image tower beside a text tower under ``text.``): GELU, as EVA-CLIP has;
5. for open_clip files: ``quick_gelu`` of ``open_clip_config.json`` beside the file (absent there means GELU);
6. QuickGELU for TorchScript archives and for pickles with OpenAI's ``input_resolution`` beside the weights: OpenAI's.

Any other file without a configuration is an error: the two activations give different features and nothing in the
weights tells them apart. The architecture in front of the file's name decides (``ViT-B-32-quickgelu/FILE``).

Relatives of CLIP, such as SigLIP, are handed to :mod:`clip.towers` with their configuration.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file

from clip.archive import CheckpointError, RawFile, read_file
from clip.build import build_model
from clip.convert import OPENAI_NUMBERS, StateDict, layout, refuse_other_families, released_heads, unwrap
from clip.eva import ROPE_GRID, EvaVisionTransformer
from clip.model import CLIP, HEAD_WIDTH
from clip.towers.configurations import (
    HUGGING_FACE,
    OPEN_CLIP,
    RESAMPLE,
    RESIZE,
    beside,
    hugging_face_pixels,
    open_clip_pixels,
    unlike_plain,
)
from clip.towers.load import SIGLIP, open_clip_model, siglip_model
from clip.towers.model import TowerCLIP

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


class CheckpointInfo(NamedTuple):
    """Metadata that the weights do not contain.

    Attributes:
        quick_gelu: QuickGELU or GELU; None where the source does not say.
        vision_heads: heads of the image tower; None for width // 64.
        transformer_heads: heads of the text tower; None for width // 64.
        mean: pixel mean per channel of the preprocessing, for pixels in [0, 1].
        std: pixel standard deviation per channel.
        rope_grid: of an EVA-style image tower (:class:`clip.eva.EvaVisionTransformer`), others have none.
        interpolation: of images that are resized.
        resize: ``shortest`` for the shorter side and a center crop, ``squash`` for both sides to a square.
    """

    quick_gelu: bool | None = None
    vision_heads: int | None = None
    transformer_heads: int | None = None
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    rope_grid: int = ROPE_GRID
    interpolation: str = "bicubic"
    resize: str = "shortest"


def load_checkpoint(
    path: Path, quick_gelu: bool | None = None, config: dict[str, Any] | None = None, name: str = ""
) -> tuple[CLIP, CheckpointInfo]:
    """The model in a checkpoint file or in a folder.

    Args:
        path: the file or folder.
        quick_gelu: the activation, where the source does not tell it or tells it wrongly.
        config: in the place of an open_clip_config.json beside the file.
        name: of the backbone as the user gave it, for messages.

    Returns:
        The fp32 model in evaluation mode, and the info it was built from.

    Raises:
        FileNotFoundError: no such file, or no weights in the folder.
        ValueError: the file cannot be read safely, does not fit, or does not tell its activation.
        ImportError: its towers are those of a package that is not installed.
    """
    path = _file_in(path)
    raw = read_file(path)
    try:
        weights = unwrap(raw.content)
        if found := _other_towers(path, raw, weights, config, name or path.name):
            return found
        info = _checked(_info(path, raw, weights, config))
        if quick_gelu is not None:
            info = info._replace(quick_gelu=quick_gelu)
        if info.quick_gelu is None:
            raise CheckpointError(
                "the weights do not tell QuickGELU from GELU and no configuration lies beside them. For open_clip and "
                "OpenAI, name the architecture: MODEL.BACKBONE.NAME ViT-B-32/FILE for GELU, ViT-B-32-quickgelu/FILE "
                "for QuickGELU (OpenAI's weights and open_clip models named *-quickgelu); or put its config.json "
                "(transformers) or open_clip_config.json there; or give quick_gelu=True or False to clip.load"
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
        ValueError: the metadata contradict the model, or its towers are those of another library.
    """
    if isinstance(model, TowerCLIP):
        raise ValueError(
            f"this backbone is {model.family}, whose weights have no file format here: keep its folder or name"
        )
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


def _other_towers(
    path: Path, raw: RawFile, weights: StateDict, config: dict[str, Any] | None, name: str
) -> tuple[CLIP, CheckpointInfo] | None:
    """The model if its towers are those of another library (`clip.towers`); None for plain CLIP.

    Raises:
        CheckpointError: a relative of CLIP without its configuration, or one that no library here builds.
    """
    if "quick_gelu" in raw.metadata:  # `save_model` wrote it
        return None
    if any(key.startswith("vision_model.") for key in weights):
        own = beside(path, HUGGING_FACE) or {}
        kind = own.get("model_type")
        if kind in SIGLIP:
            return siglip_model(own, weights, path.parent, name), CheckpointInfo(**hugging_face_pixels(path))
        if kind not in (None, "clip"):
            raise CheckpointError(
                f"this is a {kind} model of Hugging Face (model_type in {HUGGING_FACE}), expected clip, "
                f"{' or '.join(SIGLIP)}"
            )
    else:
        config = config or beside(path, OPEN_CLIP)
        if config is not None and unlike_plain(config):
            model = open_clip_model(config, weights, path.parent, name)
            return model, CheckpointInfo(**open_clip_pixels(config))
    refuse_other_families(weights)
    return None


def _info(path: Path, raw: RawFile, weights: StateDict, config: dict[str, Any] | None) -> CheckpointInfo:
    if "quick_gelu" in raw.metadata:
        return info_of_metadata(raw.metadata)
    names = layout(weights)
    if names == "uta":
        return CheckpointInfo(quick_gelu=False, vision_heads=released_heads(weights))
    if names == "huggingface":
        return _info_of_huggingface(path)
    config = config or (beside(path, OPEN_CLIP) if raw.kind != "torchscript" else None)
    if config is not None:
        return _info_of_open_clip(config, weights)
    marks = any(key in weights for key in OPENAI_NUMBERS)
    own = raw.kind == "torchscript" or (raw.kind == "pickle" and names == "openai" and marks)
    return CheckpointInfo(quick_gelu=True if own and not path.name.startswith("open_clip") else None)


def info_of_metadata(metadata: dict[str, str]) -> CheckpointInfo:
    """Info in the header of a file that :func:`save_model` wrote; ValueError if it means nothing."""
    values = {key: json.loads(metadata[key]) for key in CheckpointInfo._fields if key in metadata}
    return _checked(CheckpointInfo(**values))


def _checked(info: CheckpointInfo) -> CheckpointInfo:
    """The info itself, pixel statistics as floats; CheckpointError for values that mean nothing."""

    def number(value: Any, kind: type | tuple[type, ...], above: float) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and above < cast(float, value) < math.inf

    def triple(values: Any, above: float) -> bool:
        fits = isinstance(values, (list, tuple)) and len(values) == 3
        return fits and all(number(value, (int, float), above) for value in values)

    right = {
        "quick_gelu": info.quick_gelu is None or isinstance(info.quick_gelu, bool),
        "vision_heads": info.vision_heads is None or number(info.vision_heads, int, 0),
        "transformer_heads": info.transformer_heads is None or number(info.transformer_heads, int, 0),
        "mean": triple(info.mean, -math.inf),
        "std": triple(info.std, 0),
        "rope_grid": number(info.rope_grid, int, 0),
        "interpolation": info.interpolation in RESAMPLE.values(),
        "resize": info.resize in RESIZE,
    }
    wrong = [f"{key} {getattr(info, key)!r:.40}" for key, fits in right.items() if not fits]
    if wrong:
        raise CheckpointError(f"its metadata say {', '.join(wrong)}, which is no setting of a CLIP")
    return info._replace(mean=tuple(map(float, info.mean)), std=tuple(map(float, info.std)))


def _info_of_huggingface(path: Path) -> CheckpointInfo:
    config = beside(path, HUGGING_FACE)
    if config is None:
        return CheckpointInfo()
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
    return CheckpointInfo(
        HF_ACTIVATIONS[activations.pop()],
        towers[0].get("num_attention_heads"),
        towers[1].get("num_attention_heads"),
        **hugging_face_pixels(path),
    )


def _info_of_open_clip(config: dict[str, Any], weights: StateDict) -> CheckpointInfo:
    model = config.get("model_cfg", config)
    vision = model.get("vision_cfg") or {}
    head_width = vision.get("head_width", HEAD_WIDTH)
    resnet = isinstance(vision.get("layers"), list)
    conv = weights.get("visual.attnpool.k_proj.weight" if resnet else "visual.conv1.weight")
    heads = None if conv is None else conv.shape[0] // head_width
    own = (bool(model.get("quick_gelu", False)), heads, (model.get("text_cfg") or {}).get("heads"))
    return CheckpointInfo(*own, **open_clip_pixels(config))


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES_OF_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"the folder {path} has none of {', '.join(FILES_OF_A_FOLDER)}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
