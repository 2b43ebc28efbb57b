"""The command `python train.py`: its flags, the config they make, and one run from start to result.json."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dassl.config import CfgNode, check_values, get_cfg_default, inputs
from dassl.config.flags import build_parser
from dassl.config.imports import import_modules, imports_of
from dassl.engine.build import TRAINER_REGISTRY, add_trainer_defaults, build_trainer, extend_config
from dassl.engine.checkpoints import last_epoch
from dassl.engine.machine import cuda_calls, machine_of, set_backends, settle_precision
from dassl.engine.open_world import DATASET_CONFIGS, check_evaluation
from dassl.engine.result import build_result
from dassl.engine.run import RunFolder
from dassl.engine.status import read_result, run_state
from dassl.utils import collect_env_info, distributed, set_random_seed, setup_logger
from dassl.utils.errors import error_line, lost_worker, resource_advice
from dassl.utils.torchtools import BEST_MODEL

logger = logging.getLogger(__name__)

# Raised by bad input, a full disk or a diverging loss. Lack of memory is known by `resource_advice`; anything else is a
# bug and shows its traceback.
CLEAR_ERRORS = (ValueError, KeyError, OSError, ImportError, FloatingPointError)


def build_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line, after importing what it asks for.

    Raises:
        ConfigError: unknown keys or wrong values, all of one file or of the command line together.
        ImportError: see import_modules.
        FileNotFoundError: a config file is missing.
    """
    files = [file for file in (_dataset_file(args.dataset_config_file), args.config_file) if file is not None]
    imports = [name for file in files for name in imports_of(file)] + (args.imports or [])
    cfg = known_config(imports)
    inputs.leave_open(cfg)
    for file in files:
        cfg.merge_from_file(file)
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
        "IMPORTS": args.imports,
    }
    _check_places(args)
    cfg.merge_from_list([item for key, value in flags.items() if value is not None for item in (key, value)])
    cfg.merge_from_list([item for item in args.opts if item != "--"])
    if late := set(cfg.IMPORTS).difference(imports):
        raise ValueError(f"IMPORTS among the KEY VALUE pairs comes too late for {late.pop()!r}; use --import")
    trainer = (
        TRAINER_REGISTRY.get(cfg.TRAINER.NAME) if cfg.TRAINER.NAME in TRAINER_REGISTRY.registered_names() else None
    )
    inputs.resolve(cfg, getattr(trainer, "input_defaults", None))
    check_values(cfg, getattr(trainer, "config_problems", None))
    cfg.freeze()
    return cfg


def _dataset_file(name: str | None) -> str | None:
    """Path of a data set's config; a name alone stands for configs/datasets/NAME.yaml of the project."""
    if not name or Path(name).name != name or name.endswith(".yaml"):
        return name
    return str(DATASET_CONFIGS / f"{name}.yaml")


def known_config(imports: Iterable[str] = ()) -> CfgNode:
    """Every key there is, with its default: the engine's, the methods' and those of the modules to import.

    Raises:
        ImportError: see import_modules; or the extend_cfg() of a module fails.
    """
    modules = import_modules(imports)
    cfg = get_cfg_default()
    add_trainer_defaults(cfg)
    for name, module in modules.items():
        try:
            extend_config(cfg, getattr(module, "extend_cfg", None))
        except Exception as err:  # foreign code may raise anything
            raise ImportError(f"extend_cfg() of {name!r} fails: {type(err).__name__}: {error_line(err)}") from err
    return cfg


def _check_places(args: argparse.Namespace) -> None:
    """Refuse flags among the KEY VALUE pairs, and pairs that a flag with a list of names has swallowed."""
    misplaced = [item for item in args.opts if item.startswith("--") and item != "--"]
    if misplaced:
        raise ValueError(f"{', '.join(misplaced)} stands among the KEY VALUE pairs; flags come before them")
    for flag in ("source_domains", "target_domains", "transforms"):
        keys = [item for item in getattr(args, flag) or () if re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", item)]
        if keys:
            raise ValueError(
                f"--{flag.replace('_', '-')} takes every name up to the next flag, {keys[0]} too; "
                "put another flag, or --, between its names and the KEY VALUE pairs"
            )


def checkpoint_epoch(directory: str, wanted: int | str | None) -> int | None:
    """The epoch to load from a trained run: a number, or None for model-best.pth.tar."""
    if isinstance(wanted, int):
        return wanted
    if wanted is None and any(Path(directory).glob(f"*/{BEST_MODEL}")):
        return None
    return last_epoch(directory)


def evaluate(trainer: Any, args: argparse.Namespace) -> str | None:
    """Load what --model-dir and --load-epoch name into the trainer and test it; returns what was loaded."""
    directory, loaded = args.model_dir, None
    if trainer.get_model_names():
        if directory is None and any(Path(trainer.output_dir).glob("*/model*.pth.tar*")):
            directory = trainer.output_dir
        if directory:
            epoch = checkpoint_epoch(directory, args.load_epoch)
            trainer.load_model(directory, epoch=epoch)
            if run_state(directory) == "done":  # labels of what is evaluated do not decide
                trainer.temperature = (read_result(directory).get("calibration") or {}).get("temperature")
            trainer.epoch = trainer.epoch if epoch is None else epoch - 1  # of the figures in metrics.jsonl
            loaded = f"{directory} ({'best on validation data' if epoch is None else f'epoch {epoch}'})"
        else:
            logger.warning("no --model-dir is given: what is evaluated has not been trained")
    if trainer.num_classes == 1 and trainer.cfg.DATASET.SUBSAMPLE_CLASSES == "all":
        raise ValueError(
            f"the images to evaluate are all of one class, {trainer.lab2cname[0]!r}, so that every answer is right; "
            "to learn the classes of images without labels use `python -m align_prompt predict RUN IMAGE...`"
        )
    check_evaluation(trainer)
    trainer.test()
    return loaded


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what a command line asks for; raises what goes wrong.

    Returns:
        The content of result.json; {"mode": "none"} with --no-train and --print-config.
    """
    return _run(*_parse(argv))


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    command = list(sys.argv[1:] if argv is None else argv)
    return build_parser().parse_args(command), command


def _run(args: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """One run; a process that loads data and dies, for lack of memory as a rule, costs one new start with fewer."""
    cfg = build_config(args)
    if args.print_config:
        print(cfg.dump(), end="")
        return {"mode": "none"}
    try:
        return _start(cfg, args, command)
    except (RuntimeError, OSError) as err:
        workers = cfg.DATALOADER.NUM_WORKERS
        if not lost_worker(err) or workers == 0 or "WORLD_SIZE" in os.environ:
            raise
        fewer = 0 if "shared memory" in error_line(err) else workers // 4
        logger.warning("%s. Started again with DATALOADER.NUM_WORKERS %d", error_line(err), fewer)
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = fewer
    cfg.freeze()
    return _start(cfg, args, command)


def _start(cfg: CfgNode, args: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    started = distributed.init_distributed(cfg.USE_CUDA)
    try:
        with RunFolder(cfg.OUTPUT_DIR) as folder:
            cfg = settle_precision(cfg, cfg.OUTPUT_DIR)
            mode = "eval" if args.eval_only else "none" if args.no_train else "train"
            folder.check(cfg, mode)
            if mode == "train" and folder.state == "done":
                setup_logger(None)
                folder.drop_resume_state()
                logger.info("%s is done already; its result is used again", folder.path)
                return read_result(folder.path)
            seed = folder.start(cfg, mode, command)
            log = setup_logger(cfg.OUTPUT_DIR)
            try:
                with cuda_calls(cfg.USE_CUDA):
                    return _work(args, cfg, folder, mode, seed)
            finally:
                if log is not None:
                    log.close()
    finally:
        if started:
            distributed.shutdown_distributed()


def _work(args: argparse.Namespace, cfg: CfgNode, folder: RunFolder, mode: str, seed: int) -> dict[str, Any]:
    logger.info("Setting %s seed: %d", "fixed" if cfg.SEED >= 0 else "random", seed)
    set_random_seed(seed)
    set_backends(cfg)
    arguments = "\n".join(f"{name}: {value}" for name, value in sorted(vars(args).items()))
    logger.info("***************\n** Arguments **\n***************\n%s", arguments)
    logger.info("************\n** Config **\n************\n%s", cfg)
    logger.info("Collecting env info ...\n** System info **\n%s\n", collect_env_info())
    trainer = build_trainer(cfg)
    checkpoint = None
    if mode == "none":
        return {"mode": mode}
    if mode == "eval":
        checkpoint = evaluate(trainer, args)
    else:
        try:
            trainer.train()
        except RuntimeError as err:
            if lost_worker(err) and machine_of(trainer)["workers"] is not None:  # fewer would change the result
                raise ValueError(error_line(err)) from err
            raise
    result = build_result(trainer, mode, seed, checkpoint)
    folder.finish(result)
    return read_result(folder.path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Like `run`, but bad input ends in one line `error: ...` on stderr and exit code 2."""
    args, command = _parse(argv)
    try:
        return _run(args, command)
    except Exception as err:
        if args.verbose_errors or not (isinstance(err, CLEAR_ERRORS) or resource_advice(err)):
            raise
        print(f"error: {error_line(err)}", file=sys.stderr)
        raise SystemExit(2) from err
    except KeyboardInterrupt:
        print("interrupted: the same command continues after the last whole epoch", file=sys.stderr)
        raise SystemExit(130) from None
