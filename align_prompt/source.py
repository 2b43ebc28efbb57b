"""Sources of a model: a finished run, a checkpoint, a bundle, or a CLIP used zero-shot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

import clip
import dense  # noqa: F401 - registers the dense tasks, whose keys are in every config
import trainers  # noqa: F401 - registers the methods
from align_prompt.bundle import BUNDLE, FORGOTTEN, is_bundle, leaves, read_bundle
from clip import CLIP, Encoded
from dassl.config import ConfigError, check_values
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine.checkpoints import read_checkpoint
from dassl.engine.command import checkpoint_epoch, known_config
from dassl.engine.run import CONFIG, RESULT, read_result, run_state
from trainers.parts.inputs import input_options

ZERO_SHOT = "ZeroshotCLIP"


@dataclass(frozen=True)
class Source:
    """All that a model is built from.

    Attributes:
        origin: path or name it was found by.
        cfg: config of the run without what belongs to its machine.
        classnames: classes of training, in order; empty for a zero-shot CLIP.
        template, long_names: of the data set, see `dassl.data.class_list.ClassList`.
        checkpoints: (path, content) by name of the registered model.
        folder: of the run, or None.
        result: content of result.json, or {}.
        text: features of the classes that were encoded before, or None.
        backbone: a CLIP that came with the bundle, or None: MODEL.BACKBONE.NAME is loaded.
        backbone_hash: of the CLIP that was trained with; "" where it is not known.
        temperature: divides the logits before the softmax.
    """

    origin: str
    cfg: CfgNode
    classnames: tuple[str, ...] = ()
    template: str = ""
    long_names: bool = False
    checkpoints: Mapping[str, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)
    folder: Path | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    text: Encoded | None = None
    backbone: CLIP | None = None
    backbone_hash: str = ""
    temperature: float = 1.0


def find_source(path_or_name: str | os.PathLike[str], imports: Sequence[str] = ()) -> Source:
    """Resolve the argument of `align_prompt.load`; raises as documented there."""
    name = os.fspath(path_or_name)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / BUNDLE).is_file() and is_bundle(path / BUNDLE):
            return of_bundle(path / BUNDLE, imports)
        if not (path / CONFIG).is_file() and any(
            (path / file).is_file() for file in ("config.json", "open_clip_config.json")
        ):
            return of_backbone(name)
        return of_run(path, imports)
    if ".pth.tar" in path.name:
        return of_checkpoint(path, imports)
    if path.suffix == ".safetensors" and path.is_file() and is_bundle(path):
        return of_bundle(path, imports)
    return of_backbone(name)


def of_run(folder: Path, imports: Sequence[str] = ()) -> Source:
    """A finished run: its config, classes, result and the checkpoint it deployed.

    Raises:
        FileNotFoundError: no run is there.
        ValueError: it is not finished, or it is only an evaluation of another run.
    """
    state = run_state(folder)
    if state == "new":
        raise FileNotFoundError(f'"{folder}" holds no run: expected {CONFIG}, {RESULT} and checkpoints in it')
    if state != "done":
        raise ValueError(
            f'the run in "{folder}" is {state}: start its command again to finish it, or load one of its checkpoints'
        )
    result = read_result(folder)
    paths = {}
    if any(folder.glob("*/model*.pth.tar*")):
        epoch = checkpoint_epoch(str(folder), None)
        file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        paths = {path.parent.name: path for path in sorted(folder.glob(f"*/{file}"))}
    checkpoints = {name: (path, read_checkpoint(path)) for name, path in paths.items()}
    if not checkpoints and result.get("mode") == "eval" and result.get("checkpoint"):
        raise ValueError(f'"{folder}" is an evaluation of {result["checkpoint"]} and holds no model: load that folder')
    first = next((content for _, content in checkpoints.values()), None)
    known = (result.get("classes") or {}) if first is None else stored_classes(first)
    if not known.get("names"):
        raise ValueError(
            f'"{folder}" does not say the names of its classes, so it is of an older version: run it again'
        )
    text = (folder / CONFIG).read_text(encoding="utf-8")
    cfg = config_of(text, str(folder / CONFIG), imports)
    return Source(
        origin=str(folder),
        cfg=cfg,
        **class_arguments(known, cfg),
        checkpoints=checkpoints,
        folder=folder,
        result=result,
        backbone_hash=str(result.get("fingerprint", {}).get("backbone", "")),
        temperature=float((result.get("calibration") or {}).get("temperature", 1.0)),
    )


def of_checkpoint(path: Path, imports: Sequence[str] = ()) -> Source:
    """One checkpoint alone. Its folder says of which model it is."""
    content = read_checkpoint(path)
    if not content.get("config") or not content.get("classnames"):
        raise ValueError(
            f'"{path}" holds weights without config and class names, so another program made it: import it with '
            "`python -m tools.import_checkpoint`"
        )
    cfg = config_of(content["config"], str(path), imports)
    return Source(
        origin=str(path),
        cfg=cfg,
        **class_arguments(stored_classes(content), cfg),
        checkpoints={path.absolute().parent.name: (path, content)},
    )


def of_backbone(name: str) -> Source:
    """A CLIP by name or weights, used zero-shot with its own preprocessing; classes are still to be named."""
    model, transform = clip.load(name)
    cfg = cleaned(known_config())
    settings = {
        "TRAINER.NAME": ZERO_SHOT,
        "TRAINER.ZEROSHOT.PREC": "fp32",
        "MODEL.BACKBONE.NAME": name,
        "INPUT.TRANSFORMS": ("normalize",),
        **{f"INPUT.{key}": value for key, value in input_options(clip.Input.of(transform)).items()},
    }
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    return Source(origin=name, cfg=cfg, backbone=model)


def of_bundle(path: Path, imports: Sequence[str] = ()) -> Source:
    """A bundle written by `align_prompt.bundle.write_bundle`."""
    found = read_bundle(path)
    cfg = known_config(imports)
    try:
        cfg.merge_from_list([item for pair in found.config.items() for item in pair])
        check_values(cfg)
    except ConfigError as err:
        raise ValueError(f'the bundle "{path}" cannot be used, its config is of another version: {err}') from err
    return Source(
        origin=str(path),
        cfg=cleaned(cfg),
        classnames=found.classnames,
        template=found.template,
        long_names=found.long_names,
        checkpoints={name: (path, content) for name, content in found.checkpoints.items()},
        result=found.card,
        text=found.text,
        backbone=found.backbone,
        backbone_hash=found.backbone_hash,
        temperature=found.temperature,
    )


def stored_classes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Class names of a checkpoint and, if it has it, what its data set says of sentences."""
    return {"names": checkpoint["classnames"], **(checkpoint.get("classes") or {})}


def class_arguments(known: Mapping[str, Any], cfg: CfgNode) -> dict[str, Any]:
    """Arguments of a Source. Checkpoints of older versions do not say the template: it is the data set's."""
    template = known.get("template")
    if template is None:
        import datasets  # noqa: F401 - registers the data sets

        registered = cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
        template = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "template", "") if registered else ""
    return {"classnames": tuple(known["names"]), "template": template, "long_names": bool(known.get("long_names"))}


def config_of(text: str, origin: str, imports: Sequence[str]) -> CfgNode:
    """The config in a file of a run, without what belongs to its machine.

    Raises:
        ValueError: it is not valid YAML, or has keys that are not known, such as those of your own method.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ValueError(f'the config in "{origin}" is not readable as yaml: {err}') from err
    if not isinstance(content, dict):
        raise ValueError(f'the config in "{origin}" holds {type(content).__name__}, expected keys and values')
    cfg = known_config(imports)
    foreign = [name for name in content.get("IMPORTS") or () if name not in imports]
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except ConfigError as err:
        hint = (
            f"; it was made with {', '.join(foreign)}: load it with imports={foreign}, which runs them"
            if foreign
            else ""
        )
        raise ValueError(f'the config in "{origin}" cannot be used: {err}{hint}') from err
    return cleaned(cfg)


def cleaned(cfg: CfgNode) -> CfgNode:
    """The config with defaults in the place of what belongs to a machine."""
    cfg = cfg.clone()
    course = {key: 0 for key, _ in leaves(cfg.TRAINER, "TRAINER.") if key.endswith(".EVAL_FREQ")}
    cfg.merge_from_list([item for pair in {**FORGOTTEN, **course}.items() for item in pair])
    return cfg
