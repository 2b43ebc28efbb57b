"""Evaluators of a test set."""

from __future__ import annotations

import csv
import io
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dassl.utils import distributed
from dassl.utils.files import atomic_write, write_text
from dassl.utils.spreadsheet import safe_cell

from .build import EVALUATOR_REGISTRY
from .calibration import calibration_error, reliability

__all__ = ["Classification", "EvaluatorBase", "calibration_error", "confusion_counts", "macro_f1"]

logger = logging.getLogger(__name__)

KINDS = (torch.long, torch.long, torch.float, torch.float, torch.bool)  # of the fields of Predictions
CONFUSION = "cmat.pt"  # of TEST.COMPUTE_CMAT, in the folder of the run
PREDICTIONS = "predictions.csv"  # of TEST.PREDICTIONS, in the folder of the run
GROUP = 32
"""Batches of a device other than the CPU whose outputs are read together, so that the host does not wait for each."""


class EvaluatorBase:
    """Interface: `process` takes model outputs and labels batch by batch, `evaluate` gives the metrics."""

    def __init__(self, cfg: Any):
        self.cfg = cfg

    def reset(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def process(self, mo: Any, gt: Any) -> None:
        """Take the outputs and the labels of one batch."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """The metrics by name, the one that models are chosen by first."""
        raise NotImplementedError


class Predictions(NamedTuple):
    """One entry per item: label, predicted label, probability of the prediction, the same at the evaluator's
    temperature, whether the label is in the top 5."""

    label: Tensor
    predicted: Tensor
    confidence: Tensor
    calibrated: Tensor
    in_top5: Tensor


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1 of a classifier, printed; calibration error, top-5 and classes in `summary`.

    In a run of several processes the outputs of all are put together, and every process gets the same results.

    Args:
        lab2cname: class names by label; needed for per-class results.

    Attributes:
        temperature: divides the logits before the softmax that gives calibrated probabilities; None without one.

    Raises:
        ValueError: TEST.PER_CLASS_RESULT without class names.
    """

    def __init__(self, cfg: Any, lab2cname: dict[int, str] | None = None, **kwargs: Any):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names, but the evaluator was given none")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.temperature: float | None = None
        self._parts: list[Predictions] = []
        self._paths: list[str] = []
        self._waiting: list[tuple[Tensor, ...]] = []  # which images have a NaN, and Predictions
        self._summary: dict[str, Any] | None = None

    def process(self, mo: Tensor, gt: Tensor, paths: Sequence[str] = ()) -> None:
        """Take one batch.

        Args:
            mo: logits (B, C); their softmax is taken as the probabilities.
            gt: labels (B,).
            paths: of the B images, with TEST.PREDICTIONS.

        Raises:
            ValueError: the shapes do not match, or a logit is NaN, which may be noticed some batches later.
        """
        if mo.dim() != 2 or gt.shape != mo.shape[:1]:
            raise ValueError(f"expected logits (B, C) and labels (B,), got {tuple(mo.shape)} and {tuple(gt.shape)}")
        logits = mo.detach().float()
        labels = gt.to(logits.device)
        predicted = logits.argmax(dim=1)
        confidence = calibrated = logits.softmax(dim=1).gather(1, predicted[:, None])[:, 0]
        if self.temperature is not None:
            calibrated = (logits / self.temperature).softmax(dim=1).gather(1, predicted[:, None])[:, 0]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        in_top5 = (best == labels[:, None]).any(dim=1)
        self._paths += paths
        self._waiting.append((logits.isnan().any(1), labels, predicted, confidence, calibrated, in_top5))
        if logits.device.type == "cpu" or len(self._waiting) == GROUP:
            self._read()

    def _read(self) -> None:
        """Bring what waits to the host."""
        if not self._waiting:
            return
        broken, *part = (torch.cat(column).cpu() for column in zip(*self._waiting))
        self._waiting = []
        if broken.any():
            raise ValueError(f"the logits of {int(broken.sum())} of {len(broken)} images are NaN")
        self._parts.append(Predictions(*part))

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the results and return accuracy, error_rate and macro_f1, all in percent, in this order.

        With TEST.PER_CLASS_RESULT also perclass_accuracy, the mean over the classes present; with TEST.COMPUTE_CMAT the
        confusion matrix (C, C), rows true classes that sum to 1 (or 0 if absent), is saved as OUTPUT_DIR/cmat.pt; with
        TEST.PREDICTIONS what was predicted for every image as OUTPUT_DIR/predictions.csv.

        Raises:
            ValueError: no item was processed.
        """
        self._summary = summary = self._measure()
        results = OrderedDict((name, summary[name]) for name in ("accuracy", "error_rate", "macro_f1"))
        logger.info(
            "=> result\n* total: %s\n* correct: %s\n* accuracy: %.1f%%\n* error: %.1f%%\n* macro_f1: %.1f%%",
            f"{summary['total']:,}",
            f"{summary['correct']:,}",
            summary["accuracy"],
            summary["error_rate"],
            summary["macro_f1"],
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._log_classes(summary["per_class"])
        if self.cfg.TEST.COMPUTE_CMAT and distributed.is_main_process():
            self._save_confusion_matrix()
        if self.cfg.TEST.PREDICTIONS:
            self._save_predictions()
        return results

    def summary(self) -> dict[str, Any]:
        """Results of `evaluate` as plain numbers.

        accuracy, error_rate, macro_f1, ece (expected calibration error, 15 bins) and top5 in percent, total, correct,
        and per_class: for each class present {label, total, correct, accuracy} under its name. A name that two classes
        share is followed by the label. reliability: for each bin of ece the count, the number of right predictions and
        the sum of their probabilities. With a temperature also calibration: it, and ece and reliability under it.

        Raises:
            ValueError: `evaluate` has not run since the last `reset`.
        """
        if self._summary is None:
            raise ValueError("nothing was evaluated yet: call evaluate() first")
        return self._summary

    def _gathered(self) -> Predictions:
        self._read()
        empty = Predictions(*(torch.empty(0, dtype=kind) for kind in KINDS))
        own = Predictions(*(torch.cat(column) for column in zip(empty, *self._parts)))
        arrays = distributed.all_gather_object(tuple(column.numpy() for column in own))
        return Predictions(*(torch.cat([torch.from_numpy(part) for part in column]) for column in zip(*arrays)))

    def _measure(self) -> dict[str, Any]:
        self._seen = seen = self._gathered()
        total = len(seen.label)
        if total == 0:
            raise ValueError("there is nothing to evaluate: no image was processed")
        counts = confusion_counts(seen.label, seen.predicted, len(self._lab2cname or ()))
        self._counts = counts
        correct = int(counts.diagonal().sum())
        accuracy = 100.0 * correct / total
        right = seen.label == seen.predicted
        temperature = self.temperature
        calibrated = {} if temperature is None else {"temperature": temperature, **_calibration(seen.calibrated, right)}
        return {
            "accuracy": accuracy,
            "error_rate": 100.0 - accuracy,
            "macro_f1": 100.0 * macro_f1(counts),
            **_calibration(seen.confidence, right),
            **({"calibration": calibrated} if calibrated else {}),
            "top5": 100.0 * int(seen.in_top5.sum()) / total,
            "total": total,
            "correct": correct,
            "per_class": self._per_class(counts),
        }

    def _per_class(self, counts: Tensor) -> dict[str, dict[str, Any]]:
        names = self._lab2cname or {}
        present = [label for label in range(len(counts)) if int(counts[label].sum())]
        shown = [names.get(label, str(label)) for label in present]
        classes = {}
        for label, name in zip(present, shown):
            total, correct = int(counts[label].sum()), int(counts[label, label])
            key = name if shown.count(name) == 1 else f"{name} (label {label})"
            classes[key] = {"label": label, "total": total, "correct": correct, "accuracy": 100.0 * correct / total}
        return classes

    def _log_classes(self, classes: dict[str, dict[str, Any]]) -> float:
        names = self._lab2cname or {}
        lines = ["=> per-class result"]
        for entry in classes.values():
            lines.append(
                f"* class: {entry['label']} ({names.get(entry['label'], '')})\ttotal: {entry['total']:,}\t"
                f"correct: {entry['correct']:,}\tacc: {entry['accuracy']:.1f}%"
            )
        mean = sum(entry["accuracy"] for entry in classes.values()) / len(classes)
        logger.info("%s", "\n".join([*lines, f"* average: {mean:.1f}%"]))
        return mean

    def _save_confusion_matrix(self) -> None:
        rows = self._counts.double()
        matrix = rows / rows.sum(dim=1, keepdim=True).clamp_min(1)
        path = Path(self.cfg.OUTPUT_DIR) / CONFUSION
        atomic_write(path, lambda file: torch.save(matrix, file))
        logger.info("Confusion matrix is saved to %s", path)

    def _save_predictions(self) -> None:
        """Write path, label, prediction and its (calibrated) probability of every image, by process."""
        paths = [path for part in distributed.all_gather_object(self._paths) for path in part]
        if not distributed.is_main_process():
            return
        names, seen = self._lab2cname or {}, self._seen
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("path", "label", "prediction", "probability"))
        for path, *labels, confidence in zip(
            paths, seen.label.tolist(), seen.predicted.tolist(), seen.calibrated.tolist()
        ):
            table.writerow((safe_cell(path), *(safe_cell(names.get(label, label)) for label in labels), confidence))
        write_text(text.getvalue(), Path(self.cfg.OUTPUT_DIR) / PREDICTIONS)
        logger.info("Predictions are saved to %s", Path(self.cfg.OUTPUT_DIR) / PREDICTIONS)


def confusion_counts(label: Tensor, predicted: Tensor, num_classes: int = 0) -> Tensor:
    """Counts (C, C): row = label, column = prediction; C is `num_classes` or what the values need, the larger."""
    size = max(num_classes, int(label.max()) + 1, int(predicted.max()) + 1)
    return torch.bincount(label * size + predicted, minlength=size * size).view(size, size)


def macro_f1(counts: Tensor) -> float:
    """Mean F1 in [0, 1] over the classes that occur among the labels (rows) of a confusion matrix (C, C)."""
    hits = counts.diagonal().double()
    labelled, predicted = counts.sum(dim=1), counts.sum(dim=0)
    f1 = 2 * hits / (labelled + predicted).clamp_min(1)
    return float(f1[labelled > 0].mean())


def _calibration(probability: Tensor, right: Tensor) -> dict[str, Any]:
    """Expected calibration error in percent, and sums per bin, which can be pooled over runs."""
    bins = reliability(probability, right)
    count, sums = bins.count.tolist(), [(side * bins.count).nan_to_num() for side in bins[:2]]
    diagram = {"count": count, "correct": sums[0].round().long().tolist(), "probability": sums[1].tolist()}
    return {"ece": 100.0 * calibration_error(probability, right), "reliability": diagram}
