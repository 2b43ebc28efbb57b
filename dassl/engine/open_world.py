"""Figures of an evaluation besides the test set: temperature, images of other data sets, base and new jointly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dassl.config.files import config_exists, config_names
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import build_dataset
from dassl.data.seeding import loader_seed
from dassl.evaluation.calibration import fit_temperature
from dassl.evaluation.out_of_distribution import SCORES, detection, scores
from dassl.utils import distributed, get_most_similar_str_to_a_from_b

if TYPE_CHECKING:
    from .simple import SimpleTrainer

logger = logging.getLogger(__name__)

DATASET_CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"


def other_loaders(trainer: SimpleTrainer) -> dict[str, Any]:
    """Loaders of the test images of TEST.OOD_DATASETS, by name, with the transform of the test set.

    Raises:
        ValueError: a name that no data set has, or a data set without test images.
        OSError: the images are not there.
    """
    cfg, loaders = trainer.cfg, {}
    for name in cfg.TEST.OOD_DATASETS:
        file = DATASET_CONFIGS / f"{name}.yaml"
        if not config_exists(file):
            known = config_names(DATASET_CONFIGS)
            similar = get_most_similar_str_to_a_from_b(name, known)
            raise ValueError(
                f"TEST.OOD_DATASETS has {name!r} (do you mean {similar}?), expected names of data sets: "
                f"{', '.join(known)}"
            )
        own = cfg.clone()
        own.defrost()
        own.merge_from_list(["DATASET.NUM_SHOTS", -1, "DATASET.SUBSAMPLE_CLASSES", "all", "VERBOSE", False])
        own.merge_from_file(file)
        dataset = build_dataset(own)
        if not dataset.test:
            raise ValueError(f"TEST.OOD_DATASETS has {name!r}, which has no test images")
        if shared := sorted({*dataset.classnames} & {*trainer.classnames()}):
            logger.warning("%s has classes of the model, whose images count as foreign: %s", name, ", ".join(shared))
        part = cfg.DATALOADER.TEST
        loaders[name] = build_data_loader(
            cfg,
            part.SAMPLER,
            dataset.test,
            part.BATCH_SIZE,
            tfm=trainer.dm.tfm_eval,
            is_train=False,
            seed=loader_seed(cfg.SEED, 2) if cfg.TEST.VIEWS else 0,
        )
    return loaders


def check_evaluation(trainer: SimpleTrainer) -> None:
    """Raise ValueError if the data cannot give what the options of TEST ask for."""
    if trainer.cfg.TEST.CALIBRATE and trainer.temperature is None and not trainer.has_own_val:
        raise ValueError(
            f"TEST.CALIBRATE is True, but {trainer.cfg.DATASET.NAME} has no validation images other than its test "
            "images: set it False"
        )


def temperature_of(trainer: SimpleTrainer) -> float:
    """Temperature that fits the validation images, the same in every process."""
    found = [
        (output.float().cpu(), label.cpu()) for output, label, _ in trainer.outputs(trainer.val_loader, "calibrate")
    ]
    parts = [part for share in distributed.all_gather_object(found) for part in share]
    logits, label = (torch.cat(column) for column in zip(*parts))
    temperature = fit_temperature(logits, label)
    logger.info("Temperature fitted on %d validation images: %.4f", len(label), temperature)
    return temperature


class ScoreList:
    """Scores of images, batch by batch; `all` is those of every process."""

    def __init__(self, scale: float):
        self.scale = scale
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}

    def add(self, logits: torch.Tensor) -> None:
        """Take the logits (B, C) of a batch."""
        for name, score in scores(logits, self.scale).items():
            self.parts[name].append(score.cpu().numpy())

    def all(self) -> dict[str, np.ndarray]:
        """Scores (n,) by name."""
        shares = distributed.all_gather_object(self.parts)
        return {name: np.concatenate([part for share in shares for part in share[name]]) for name in SCORES}


def detect_others(trainer: SimpleTrainer, inside: ScoreList) -> dict[str, Any]:
    """Figures of every score on every data set of TEST.OOD_DATASETS, and their averages over the data sets.

    Returns:
        {data set: {"images": n, "mcm": {"auroc", "fpr95"}, "energy": {...}}, ..., "average": {...}} in percent.
    """
    own = inside.all()
    found: dict[str, Any] = {}
    for name, loader in trainer.other_loaders.items():
        outside = ScoreList(inside.scale)
        for output, _, _ in trainer.outputs(loader, f"evaluate {name}"):
            outside.add(output)
        others = outside.all()
        found[name] = {"images": len(others[SCORES[0]])} | {k: detection(own[k], others[k]) for k in SCORES}
        logger.info(
            "* %s: AUROC %.1f%%, FPR95 %.1f%% by MCM; %.1f%%, %.1f%% by energy",
            name,
            *(found[name][score][figure] for score in SCORES for figure in ("auroc", "fpr95")),
        )
    several = list(found.values())
    found["average"] = {
        score: {figure: float(np.mean([one[score][figure] for one in several])) for figure in several[0][score]}
        for score in SCORES
    }
    return found


def joint_figures(per_class: Mapping[str, Mapping[str, Any]], classes: int) -> dict[str, float]:
    """Accuracy in percent of base and new test images, each classified among all `classes`, and their harmonic mean.

    Base are the first half of the classes, the larger one, as in SUBSAMPLE_CLASSES.

    Args:
        per_class: {name: {"label", "total", "correct"}}, as in `Classification.summary`.

    Raises:
        ValueError: a half has no test images.
    """
    half = -(-classes // 2)
    figures = {}
    for name, labels in (("base", range(half)), ("new", range(half, classes))):
        entries = [entry for entry in per_class.values() if entry["label"] in labels]
        if not (total := sum(entry["total"] for entry in entries)):
            raise ValueError(f"TEST.JOINT is True, but there are no test images of {name} classes: set it False")
        figures[name] = 100.0 * sum(entry["correct"] for entry in entries) / total
    base, new = figures.values()
    return {**figures, "h": 2 * base * new / (base + new) if base + new else 0.0}
