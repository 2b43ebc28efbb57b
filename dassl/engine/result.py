"""result.json: what a run measured, what it cost, and on what exactly it was measured."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import torch

from dassl.data.fingerprint import classnames_hash, split_hash, transform_repr
from dassl.utils import distributed

from .base import trainable_parameters
from .machine import decisive
from .records import read_metrics
from .simple import SimpleTrainer


def build_result(trainer: SimpleTrainer, mode: str, seed: int, checkpoint: str | None = None) -> dict[str, Any]:
    """Everything a table needs about a finished run, as plain values.

    Args:
        trainer: after train() or test().
        mode: "train" or "eval".
        seed: in use.
        checkpoint: what was loaded for an evaluation, None if nothing was.

    Accuracies are in percent, seconds are wall time, memory is in MiB of the main process.
    """
    cfg = trainer.cfg
    marks = fingerprint(trainer, seed)
    machines = trainer.all_machines()
    learned = bool(trainer._models)
    return {
        "method": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": seed,
        "subsample": cfg.DATASET.SUBSAMPLE_CLASSES,
        "source_domains": list(cfg.DATASET.SOURCE_DOMAINS),
        "target_domains": list(cfg.DATASET.TARGET_DOMAINS),
        "mode": mode,
        "epochs": trainer.max_epoch if mode == "train" else None,
        "selection": _selection(trainer) if learned and mode == "train" else None,
        "checkpoint": checkpoint,
        "classes": None if learned else trainer.class_facts(),  # what a checkpoint would hold
        **_measured(trainer),
        "last_epoch": _last_epoch(trainer) if mode == "train" else None,
        **_cost(trainer, mode),
        "audit": None if trainer.audit is None else trainer.audit.plain(),
        "machine": machines[-1],
        **({"earlier_machines": machines[:-1]} if len(machines) > 1 else {}),
        "fingerprint": marks,
        "fingerprint_hash": short_hash(marks),
        # Equal for runs that differ in the seed alone, and so in the picks, or in the machine: those may be averaged,
        # on different machines with a mark.
        "protocol_hash": short_hash(
            {key: value for key, value in marks.items() if key not in ("seed", "split", "machine")}
        ),
    }


def fingerprint(trainer: SimpleTrainer, seed: int) -> dict[str, Any]:
    """Fingerprint that comparable results share: data, class names, templates, transforms, backbone, seed, shots."""
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    root = getattr(dataset, "items_root", "")
    parts = {name: getattr(dataset, name, None) for name in ("train_x", "train_u", "val", "test")}
    hashes = {name: split_hash(items, root)[:16] for name, items in parts.items() if items}
    extra = trainer.fingerprint_extra()
    marks = {
        "split": hashes,
        "test_split": hashes.get("test"),
        "classnames": classnames_hash(trainer.classnames())[:16],
        "templates": extra.get("template", cfg.INPUT.TEMPLATE),
        "transforms": {
            "train": transform_repr(getattr(trainer.dm, "tfm_train", None)),
            "test": transform_repr(getattr(trainer.dm, "tfm_test", None)),
        },
        "backbone": extra.get("backbone", cfg.MODEL.BACKBONE.NAME),
        "seed": seed,
        "shots": cfg.DATASET.NUM_SHOTS,
        "subsample": cfg.DATASET.SUBSAMPLE_CLASSES,
        "machine": [decisive(machine) for machine in trainer.all_machines()],
    }
    if getattr(dataset, "split_origin", ""):
        marks["split_origin"] = dataset.split_origin  # only of a split that is not the official one
    return {**marks, **{key: value for key, value in extra.items() if key not in ("template", "backbone")}}


def short_hash(value: Any) -> str:
    """First 12 hex digits of the sha256 of a value's JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _selection(trainer: SimpleTrainer) -> str:
    """Selection of the deployed weights: last, val, or test, also where the validation images are the test images."""
    found = {trainer.chosen_on()}
    if trainer.cfg.TEST.FINAL_MODEL == "best_val" and not trainer.cfg.TEST.NO_TEST:
        found.add("val" if trainer.has_own_val else "test")
    return "test" if "test" in found else "val" if "val" in found else "last"


def _measured(trainer: SimpleTrainer) -> dict[str, Any]:
    """Figures of the last evaluation; those that every table needs are None if the evaluator does not give them."""
    evaluation = trainer.evaluation
    figures = dict.fromkeys(("accuracy", "macro_f1", "error_rate", "ece", "top5", "per_class"))
    figures.update(evaluation.results if evaluation else {})
    total, correct = figures.pop("total", None), figures.pop("correct", None)
    counts = {**_counts(trainer), "evaluated": total, "correct": correct}
    return {"split": evaluation.split if evaluation else None, **figures, "counts": counts}


def _last_epoch(trainer: SimpleTrainer) -> dict[str, float] | None:
    """Means over the last epoch of what every step logs: the loss, its terms and the method's own figures."""
    records = read_metrics(trainer.output_dir) if distributed.is_main_process() and trainer.metrics.size() else []
    found = [record for record in records if record.get("kind") == "epoch"]
    return {key: value for key, value in found[-1].items() if key not in ("kind", "epoch", "images")} if found else None


def _counts(trainer: SimpleTrainer) -> dict[str, Any]:
    dataset = trainer.dm.dataset
    return {
        "classes": trainer.num_classes,
        "train": len(getattr(dataset, "train_x", None) or ()),
        "val": len(getattr(dataset, "val", None) or ()),
        "test": len(getattr(dataset, "test", None) or ()),
    }


def _cost(trainer: SimpleTrainer, mode: str) -> dict[str, Any]:
    evaluation = trainer.evaluation
    trained = mode == "train" and trainer.train_seconds > 0
    # The speed of an evaluation from stored features would say nothing about the method.
    evaluated = evaluation is not None and evaluation.seconds > 0 and not evaluation.stored
    return {
        "train_seconds": round(trainer.train_seconds, 3) if mode == "train" else None,
        "eval_seconds": round(evaluation.seconds, 3) if evaluation else None,
        "elapsed_seconds": round(trainer.elapsed(), 3),
        "train_images_per_second": round(trainer.train_images / trainer.train_seconds, 2) if trained else None,
        "images_per_second": round(evaluation.images / evaluation.seconds, 2) if evaluation and evaluated else None,
        "peak_memory_mib": peak_memory(),
        "trainable_parameters": trainable_parameters(trainer._models),
        "device": str(trainer.device),
        "precision": trainer.precision.name,
        "processes": distributed.get_world_size(),
    }


def peak_memory() -> dict[str, float | None]:
    """Largest resident memory of this process and of its GPU tensors so far, in MiB; None where it cannot be known."""
    cuda = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    try:
        import resource
    except ImportError:  # not on Windows
        return {"rss": None, "cuda": cuda}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {"rss": round(rss, 1), "cuda": None if cuda is None else round(cuda, 1)}
