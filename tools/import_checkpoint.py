"""Turn checkpoints of the released repositories into ours.

python -m tools.import_checkpoint FILE --trainer NAME --output DIR: see docs/import_checkpoints.md.

A file is read without running anything stored in it. Every entry must be known: what is read, and what is left out
because it follows from the class names or is CLIP itself. Lengths, depths and numbers of prompts must be those of the
config, because a model with other prompts would be another model.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

import clip
from clip import CLIP
from dassl.config import CfgNode, check_values, get_cfg_default, inputs
from dassl.engine import TRAINER_REGISTRY, add_trainer_defaults
from dassl.engine.checkpoints import check_weights, read_checkpoint
from dassl.utils import save_checkpoint

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

CLIP_PARTS = {"image_encoder.": "visual.", "text_encoder.": "", "logit_scale": "logit_scale"}
DERIVED = r"token_(prefix|suffix)"  # embeddings of the class names
FROZEN = r"(image_encoder|text_encoder)\.(?!.*VPT).+|logit_scale"  # CLIP
OTHER_WEIGHTS = 0.02  # relative difference of CLIP weights from which a file is of another backbone; fp16 costs 0.001


class Rule(NamedTuple):
    """One kind of entry: its released name, our name, {} for the layer number in both, and what is added to it.

    `mode`: ours has a first axis for the modes, of length 1.
    """

    released: str
    ours: str
    shift: int = 0
    mode: bool = False


class Conversion(NamedTuple):
    """From the entries of a released trainer's file, named without `prompt_learner.`, to those of ours.

    rules: what is read. ignored: patterns of what is left out. sizes: config key -> its value as the file has it.
    """

    rules: tuple[Rule, ...]
    sizes: Mapping[str, Callable[[State], int | bool]]
    ignored: tuple[str, ...] = (DERIVED,)


def count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in state)


CONTEXT = Rule("ctx", "ctx")
MODE_CONTEXT = Rule("ctx", "ctx", mode=True)
META_NET = tuple(Rule(f"meta_net.{name}", f"meta_net.{name}") for name in ("linear1.weight", "linear1.bias"))
META_NET += tuple(Rule(f"meta_net.{name}", f"meta_net.{name}") for name in ("linear2.weight", "linear2.bias"))
DEEP_TEXT = Rule("text_encoder.transformer.resblocks.{}.VPT_shallow", "deep.{}", shift=-1, mode=True)
VISION = (
    Rule("image_encoder.VPT", "vision.0", mode=True),
    Rule("image_encoder.transformer.resblocks.{}.VPT_shallow", "vision.{}", mode=True),
)
COUPLED = (
    Rule("proj.weight", "projections.0.weight"),
    Rule("proj.bias", "projections.0.bias"),
    Rule("compound_prompt_projections.{}.weight", "projections.{}.weight", shift=1),
    Rule("compound_prompt_projections.{}.bias", "projections.{}.bias", shift=1),
)
LENGTH: Mapping[str, Callable[[State], int | bool]] = {"N_CTX": lambda state: state["ctx"].shape[-2]}
CLASS_SPECIFIC: Mapping[str, Callable[[State], int | bool]] = {"CSC": lambda state: state["ctx"].dim() == 3}
INDEPENDENT: Mapping[str, Callable[[State], int | bool]] = {
    "N_CTX_TEXT": lambda state: state["ctx"].shape[-2],
    "PROMPT_DEPTH_TEXT": lambda state: 1 + count(state, r"deep\.\d+"),
    "N_CTX_VISION": lambda state: state["vision.0"].shape[-2] if "vision.0" in state else 0,
    "PROMPT_DEPTH_VISION": lambda state: count(state, r"vision\.\d+"),
}
DEPTH: Mapping[str, Callable[[State], int | bool]] = {"PROMPT_DEPTH": lambda state: 1 + count(state, r"deep\.\d+")}

CONVERSIONS = {
    "CoOp": Conversion((CONTEXT,), {**LENGTH, **CLASS_SPECIFIC}),
    "CoCoOp": Conversion((CONTEXT, *META_NET), LENGTH),
    "KgCoOp": Conversion((CONTEXT,), LENGTH, (DERIVED, r"bias_vectors", r"meta_net\.linear1\.(weight|bias)")),
    "ProGrad": Conversion((CONTEXT,), {**LENGTH, **CLASS_SPECIFIC}),
    "TCP": Conversion((CONTEXT, *META_NET), LENGTH),
    "PLOT": Conversion((CONTEXT,), {**LENGTH, "N": lambda state: state["ctx"].shape[0]}),
    "PLOTPP": Conversion(
        (CONTEXT, Rule("ctx_vision", "ctx_vision")),
        {"M": lambda state: state["ctx_vision"].shape[0], "N_CTX_V": lambda state: state["ctx_vision"].shape[1]},
        (DERIVED, FROZEN),
    ),
    "VPT": Conversion(
        VISION, {key: INDEPENDENT[key] for key in ("N_CTX_VISION", "PROMPT_DEPTH_VISION")}, (DERIVED, FROZEN)
    ),
    "IVLP": Conversion((MODE_CONTEXT, DEEP_TEXT, *VISION), INDEPENDENT, (DERIVED, FROZEN)),
    "PromptSRC": Conversion(
        (MODE_CONTEXT, DEEP_TEXT, *VISION), INDEPENDENT, (DERIVED, FROZEN, r"ZS_image_encoder\..+")
    ),
    "MaPLe": Conversion(
        (MODE_CONTEXT, Rule("compound_prompts_text.{}", "deep.{}", mode=True), *COUPLED),
        {**LENGTH, **DEPTH},
        (DERIVED, FROZEN),
    ),
    "ALIGN": Conversion(
        (CONTEXT, Rule("compound_prompts_text.{}", "deep.{}"), *COUPLED),
        {
            **LENGTH,
            **DEPTH,
            "TEXT_PROMPT_NUMBER": lambda state: state["ctx"].shape[0],
            "VISION_PROMPT_NUMBER": lambda state: state["ctx"].shape[0],
        },
        (DERIVED, FROZEN),
    ),
}


def plain_names(state: Mapping[str, Tensor]) -> State:
    """Names without what wrappers and the learner's place in a model put in front.

    Raises:
        ValueError: two entries would get the same name.
    """
    plain: State = {}
    for name, value in state.items():
        short = re.sub(r"(^|\.)module\.", r"\1", name).removeprefix("prompt_learner.")
        if short in plain:
            raise ValueError(f"the entry {short} stands twice, once as {name}")
        plain[short] = value
    return plain


def convert(trainer: str, state: Mapping[str, Tensor]) -> tuple[State, State]:
    """Entries of a released trainer's state dict under the names of ours, in fp32, and those left out.

    Raises:
        KeyError: there is no conversion for this trainer.
        ValueError: an entry that is neither read nor known to be left out, or nothing to read.
    """
    conversion = CONVERSIONS[trainer]
    converted: State = {}
    left_out: State = {}
    unknown = []
    for name, value in plain_names(state).items():
        for rule in conversion.rules:
            match = re.fullmatch(re.escape(rule.released).replace(r"\{\}", r"(\d+)"), name)
            if match is not None:
                ours = rule.ours.format(*(int(number) + rule.shift for number in match.groups()))
                converted[ours] = value.float()[None] if rule.mode else value.float()
                break
        else:
            if any(re.fullmatch(pattern, name) for pattern in conversion.ignored):
                left_out[name] = value
            else:
                unknown.append(name)
    wanted = ", ".join(rule.released for rule in conversion.rules)
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise ValueError(f"unknown entries {shown}; a file of {trainer} has {wanted}")
    if not converted:
        raise ValueError(f"there is nothing to read: a file of {trainer} has {wanted}")
    return converted, left_out


def check_backbone(left_out: State, model: CLIP, name: str) -> None:
    """Check that the CLIP weights in a file, if it has any, are those of the backbone, up to rounding and averaging.

    Raises:
        ValueError: a weight that the backbone does not have, or of another shape or value.
    """
    own = model.state_dict()
    advice = f"; is the file of another backbone than {name}? Choose it with --backbone"
    for entry, value in left_out.items():
        part = next((part for part in CLIP_PARTS if entry.startswith(part)), None)
        if part is None:
            continue
        ours = own.get(CLIP_PARTS[part] + entry.removeprefix(part))
        if ours is None or ours.shape != value.shape:
            expected = "none" if ours is None else f"shape {tuple(ours.shape)}"
            raise ValueError(f"its weight {entry} has shape {tuple(value.shape)}, the backbone has {expected}{advice}")
        difference = (value.float() - ours.float()).norm() / ours.float().norm().clamp(min=1e-6)
        if not difference <= OTHER_WEIGHTS:
            raise ValueError(f"its weight {entry} differs by {float(difference):.1%} from the backbone's{advice}")


def build_learner(cfg: CfgNode, model: CLIP, classes: int):
    """The learner of cfg.TRAINER.NAME for placeholder classes, without data and engine around it."""
    trainer = object.__new__(TRAINER_REGISTRY.get(cfg.TRAINER.NAME))
    trainer.check_cfg(cfg)
    trainer.cfg = cfg
    trainer.device = torch.device("cpu")
    classnames = ["thing"] * classes
    trainer.dm = SimpleNamespace(dataset=SimpleNamespace(template=None, classnames=classnames))
    return trainer.build_learner(model, classnames)


def check_sizes(path: Path, cfg: CfgNode, state: State, learner: torch.nn.Module) -> None:
    """Check that every entry and every shape is what the config asks for.

    Raises:
        ValueError: says what differs and which config keys the file was made with.
    """
    try:
        check_weights(path, learner, state)
    except ValueError as err:
        name = cfg.TRAINER.NAME
        node = TRAINER_REGISTRY.get(name).node
        try:
            found = {key: size(state) for key, size in CONVERSIONS[name].sizes.items()}
        except (KeyError, IndexError):  # what tells a size is missing, which the message above says
            found = {}
        differing = {key: value for key, value in found.items() if cfg.TRAINER[node][key] != value}
        pairs = " ".join(f"TRAINER.{node}.{key} {value}" for key, value in differing.items())
        hint = f". By its shapes the file was made with: {pairs}" if pairs else ""
        if "CTX_INIT" in cfg.TRAINER[node] and cfg.TRAINER[node].CTX_INIT and "N_CTX" in differing:
            hint += f" (with TRAINER.{node}.CTX_INIT the number of its tokens may count instead of N_CTX)"
        raise ValueError(f"{err}{hint}") from err


def import_checkpoint(path: Path, cfg: CfgNode, output: Path) -> tuple[Path, State, State]:
    """Convert the file and write OUTPUT/<model name>/model.pth.tar-<epoch>.

    Args:
        path: checkpoint of a released repository.
        cfg: TRAINER.NAME, its options and MODEL.BACKBONE.NAME.
        output: folder for --model-dir of train.py.

    Returns:
        The file written, the converted entries, and those left out.

    Raises:
        ValueError: the file is damaged, hostile, of another trainer, backbone or prompt size.
        FileExistsError: the file to write exists.
    """
    name = cfg.TRAINER.NAME
    if name not in CONVERSIONS:
        raise ValueError(f"--trainer is {name!r}, expected one of {', '.join(CONVERSIONS)}")
    checkpoint = read_checkpoint(path)
    try:
        state, left_out = convert(name, checkpoint["state_dict"])
    except ValueError as err:
        raise ValueError(f'"{path}": {err}') from err
    model, _ = clip.load(cfg.MODEL.BACKBONE.NAME)
    try:
        check_backbone(left_out, model, cfg.MODEL.BACKBONE.NAME)
    except ValueError as err:
        raise ValueError(f'"{path}": {err}') from err
    class_specific = CONVERSIONS[name].sizes.get("CSC")
    classes = len(state["ctx"]) if class_specific is not None and class_specific(state) else 1
    learner = build_learner(cfg, model, classes)
    check_sizes(path, cfg, state, learner)
    folder = output / TRAINER_REGISTRY.get(name).model_name
    target = folder / f"model.pth.tar-{checkpoint['epoch']}"
    if target.exists():
        raise FileExistsError(f"{target} exists already and is left as it is; choose another --output")
    result = checkpoint.get("val_result")
    content = {
        "state_dict": state,
        "epoch": checkpoint["epoch"],
        "optimizer": None,
        "scheduler": None,
        "val_result": None if result is None else float(result),
        "classnames": [],  # the released files do not name them
        "config": cfg.dump(),
    }
    save_checkpoint(content, folder)
    return target, state, left_out


def build_config(args: argparse.Namespace) -> CfgNode:
    """Defaults, the config file, the flags, then KEY VALUE pairs; ConfigError lists what is wrong."""
    cfg = get_cfg_default()
    add_trainer_defaults(cfg)
    cfg.MODEL.BACKBONE.NAME = "ViT-B/16"
    inputs.leave_open(cfg)
    if args.config_file is not None:
        cfg.merge_from_file(args.config_file)
    if args.backbone is not None:
        cfg.MODEL.BACKBONE.NAME = args.backbone
    cfg.merge_from_list(["TRAINER.NAME", args.trainer, *args.opts])
    inputs.resolve(cfg)
    check_values(cfg)
    cfg.freeze()
    return cfg


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.import_checkpoint",
        description="Turn a checkpoint of a released repository into one that --model-dir takes.",
        epilog="KEY VALUE pairs come last, such as TRAINER.MAPLE.PROMPT_DEPTH 3. See docs/import_checkpoints.md.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="model.pth.tar-N of the released repository")
    parser.add_argument("--trainer", metavar="NAME", required=True, help=f"one of {', '.join(CONVERSIONS)}")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for --model-dir")
    parser.add_argument("--backbone", metavar="NAME", help="name or file (default: the config's, else ViT-B/16)")
    parser.add_argument("--config-file", metavar="YAML", help="config of the method, configs/trainers/*/*.yaml")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys and their values")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.ERROR)
    try:
        target, state, left_out = import_checkpoint(args.file, build_config(args), args.output)
    except (ValueError, KeyError, OSError) as err:
        message = err.args[0] if isinstance(err, KeyError) and err.args else err
        print(f"error: {message}", file=sys.stderr)
        return 2
    for name, value in state.items():
        print(f"read: {name} {tuple(value.shape)}")
    frozen = sum(name.startswith(tuple(CLIP_PARTS)) for name in left_out)
    others = sorted({name.split(".")[0] for name in left_out if not name.startswith(tuple(CLIP_PARTS))})
    print(f"left out: {', '.join(others) or 'nothing'}; {frozen} weights of CLIP, compared with the backbone")
    epoch = target.name.rpartition("-")[2]
    print(f"written: {target}\nevaluate with --eval-only --model-dir {args.output} --load-epoch {epoch}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
