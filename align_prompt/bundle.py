"""A trained model in one file of safetensors: everything that prediction needs, and nothing that could run.

The tensors are what was learned ("weights/<model>/<name>"), the encoded classes ("text/pooled", "text/tokens") where
they are small, and the backbone ("backbone/<name>") where that is asked for. All else is JSON in the metadata: class
names, the config of the method and the preprocessing, the fingerprint of the backbone, and a card. A digest over the
tensors finds damage. Reading it imports nothing and takes no key of the config that names a file or module to run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from yacs.config import CfgNode

import clip
from clip import CLIP, Encoded
from clip.eva import EvaVisionTransformer
from clip.towers.model import TowerCLIP
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.command import known_config
from dassl.utils import atomic_write

if TYPE_CHECKING:
    from align_prompt.model import Model

BUNDLE = "model.safetensors"  # in a folder of Hugging Face's layout
FORMAT, VERSION = "align_prompt", 1
TEXT_LIMIT = 4 << 20  # bytes of encoded classes that are stored; more are encoded again when the bundle is loaded
# What a config says about the machine and the course of a run, and nothing about what was learned.
FORGOTTEN: dict[str, Any] = {
    "OUTPUT_DIR": "",
    "RESUME": "",
    "VERBOSE": False,
    "IMPORTS": (),
    "DATASET.ROOT": "",
    "DATASET.CACHE_DIR": "",
    "TRAIN.INIT_FROM": "",
    "TEST.FEATURE_CACHE": False,
    "TEST.PREDICTIONS": False,
    "TEST.COMPUTE_CMAT": False,
    "TEST.PER_CLASS_RESULT": False,
    "TEST.EVALUATOR": "Classification",
}
CARD = ("dataset", "shots", "seed", "subsample", "source_domains", "target_domains", "epochs", "selection", "split")
FIGURES = ("accuracy", "macro_f1", "ece", "counts", "fingerprint", "fingerprint_hash", "protocol_hash")


class Bundle(NamedTuple):
    """Content of a bundle; the fields are those of `align_prompt.source.Source`."""

    config: dict[str, Any]
    classnames: tuple[str, ...]
    template: str
    long_names: bool
    temperature: float
    backbone_hash: str
    card: dict[str, Any]
    checkpoints: dict[str, dict[str, Any]]
    text: Encoded | None
    backbone: CLIP | None


def write_bundle(model: Model, path: Path, backbone: bool = False, features: bool = True) -> str:
    """Write a model to a file; returns what is in it.

    Args:
        backbone: put the weights of the CLIP in too; otherwise it is named, and found again by that name.
        features: store the encoded classes, if they take at most TEXT_LIMIT bytes.

    Raises:
        ValueError: no classes; towers of another library that should go in.
    """
    model.encode_classes()
    trainer, source = model.trainer, model.source
    tensors = {
        f"weights/{name}/{key}": value
        for name in trainer.get_model_names()
        for key, value in trainer._models[name].state_dict().items()
    }
    content: dict[str, Any] = {
        "config": stored_config(source.cfg),
        "classnames": model.classnames,
        "template": source.template,
        "long_names": source.long_names,
        "temperature": model.temperature,
        "epochs": {name: source.checkpoints[name][1]["epoch"] for name in trainer.get_model_names()},
        "backbone": {"name": model.backbone, "hash": getattr(trainer, "backbone_hash", "")},
        "card": card(model),
    }
    text = getattr(trainer, "text", None)
    if features and text is not None and trainer.model.learner.text_features() is None:
        parts = {"text/pooled": text.pooled, "text/tokens": text.tokens}
        if sum(value.numel() * value.element_size() for value in parts.values()) <= TEXT_LIMIT:
            tensors |= parts
    if backbone:
        clip_model = source.backbone or clip.load(model.backbone)[0]
        if isinstance(clip_model, TowerCLIP):
            raise ValueError(
                f"the backbone, {clip_model.family}, cannot be put into the file: leave it out, and the file names "
                f"{model.backbone}"
            )
        tensors |= {f"backbone/{key}": _small(value) for key, value in clip_model.state_dict().items()}
        content["backbone"] |= {"name": model.backbone_title, "facts": _facts(clip_model)}
        content["config"]["MODEL.BACKBONE.NAME"] = model.backbone_title
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "digest": _digest(tensors), "content": json.dumps(content)}
    data = save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: file.write(data))
    return f"{len(data) / 1000:,.1f} kB, backbone {'inside' if backbone else f'named: {model.backbone}'}"


def is_bundle(path: Path) -> bool:
    """True if a safetensors file says that it is a bundle."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def read_bundle(path: Path) -> Bundle:
    """Read a file that `write_bundle` wrote.

    Raises:
        ValueError: it is damaged, of another version, or holds what no bundle has.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != str(VERSION):
                raise ValueError(
                    f"it is of version {metadata.get('version')!r}, and this program reads {VERSION}: export it again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        if metadata.get("digest") != _digest(tensors):
            raise ValueError("its tensors are not those that were written (the digest differs)")
        return _parsed(json.loads(metadata["content"]), tensors)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as err:
        reason = f"{err.args[0]!r} is missing" if isinstance(err, KeyError) and len(err.args) == 1 else err
        raise ValueError(f'the bundle "{path}" cannot be used: {reason}') from err


def _parsed(content: Any, tensors: Mapping[str, Tensor]) -> Bundle:
    config, names, base = content["config"], content["classnames"], content["backbone"]
    wrong = [key for key in config if key in FORGOTTEN and config[key] not in (FORGOTTEN[key], [])]
    if wrong:
        raise ValueError(f"its config has {', '.join(wrong)}, which no bundle needs")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError("it has no class names")
    temperature = float(content["temperature"])
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"its temperature is {temperature}, expected a number above 0")
    parts: dict[str, dict[str, Tensor]] = {"text": {}, "backbone": {}}
    models: dict[str, dict[str, Tensor]] = {name: {} for name in content["epochs"]}
    for full, value in tensors.items():
        kind, _, name = full.partition("/")
        model, _, key = name.partition("/")
        target = models.get(model) if kind == "weights" else parts.get(kind)
        if target is None:
            raise ValueError(f"it has a tensor {full[:80]!r}, which belongs to nothing")
        target[key if kind == "weights" else name] = value
    checkpoints = {
        name: {"state_dict": weights, "epoch": int(content["epochs"][name]), "classnames": names}
        for name, weights in models.items()
    }
    backbone = clip.build_model(parts["backbone"], **base["facts"]) if parts["backbone"] else None
    return Bundle(
        config=dict(config),
        classnames=tuple(names),
        template=str(content["template"]),
        long_names=bool(content["long_names"]),
        temperature=temperature,
        backbone_hash=str(base["hash"]),
        card=dict(content["card"]),
        checkpoints=checkpoints,
        text=Encoded(parts["text"]["pooled"], parts["text"]["tokens"]) if parts["text"] else None,
        backbone=backbone,
    )


def stored_config(cfg: CfgNode) -> dict[str, Any]:
    """Keys of the method and of the preprocessing, and all that differ from the defaults, by dotted name."""
    method = cfg.TRAINER.NAME
    declared: Mapping[str, Any] = getattr(TRAINER_REGISTRY.get(method), "defaults", dict)()
    own = ("INPUT.", *(f"TRAINER.{node}." for node in declared))
    defaults = dict(leaves(known_config()))
    return {
        key: value
        for key, value in leaves(cfg)
        if key not in FORGOTTEN and (key.startswith(own) or value != defaults.get(key, value))
    }


def leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything in a config that is not a section."""
    pairs: list[tuple[str, Any]] = []
    for key, value in node.items():
        pairs += leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def card(model: Model) -> dict[str, Any]:
    """Model card data: what it was trained on, its figures and fingerprint, licenses."""
    result = model.result
    known = {name: result[name] for name in (*CARD, *FIGURES) if result.get(name) is not None}
    return {"method": model.method, "backbone": model.backbone_title, **known, "licenses": licenses(model)}


def licenses(model: Model) -> dict[str, str]:
    """License notes: of this software, the backbone and the training pictures, as far as they are known."""
    from datasets.prepare.catalog import CATALOG

    name = str(model.source.cfg.DATASET.NAME)
    facts = next((entry for entry in CATALOG.values() if entry.name == name), None)
    embedded = model.backbone in clip.api.EMBEDDED
    published = model.backbone in clip.download.MODELS
    return {
        "software": "MIT",
        "backbone": "MIT; artwork it was trained on: THIRD_PARTY.md"
        if embedded
        else "MIT (OpenAI's CLIP); see its model card"
        if published
        else "as of its source",
        "pictures": facts.licence if facts else "as of their source",
    }


def _small(value: Tensor) -> Tensor:
    """The tensor in half precision, if that loses nothing."""
    half = value.half() if value.dtype == torch.float32 else value
    return half if torch.equal(half.to(value.dtype), value) else value


def _facts(model: CLIP) -> dict[str, Any]:
    """Metadata that the weights of a CLIP do not contain: arguments of `clip.build_model`."""
    facts: dict[str, Any] = {
        "quick_gelu": model.quick_gelu,
        "vision_heads": model.visual.heads,
        "transformer_heads": model.transformer.heads,
    }
    if isinstance(model.visual, EvaVisionTransformer):
        facts["rope_grid"] = model.visual.rope_grid
    return facts


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
