"""Detection of images that belong to none of the classes: scores of an image, and figures of a score.

A score is high for images of the classes. scikit-learn ranks them; nothing here is learned.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

__all__ = ["SCORES", "detection", "scores"]

SCORES = ("mcm", "energy")
RECALL = 0.95


def scores(logits: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """Scores (n,) of images from their logits (n, C), each higher for images of the classes.

    mcm: the largest softmax probability of the similarities logits / scale at temperature 1 (maximum concept matching,
    Ming et al., 2022, equation 1). energy: log sum exp of the logits (Liu et al., 2020, equation 4, with its sign).
    """
    logits = logits.detach().double()
    return {"mcm": (logits / scale).softmax(dim=1).amax(dim=1), "energy": logits.logsumexp(dim=1)}


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Figures of a score in percent.

    auroc: probability that an image of the classes has the higher score, ties counted half. fpr95: share of the images
    outside that pass the highest threshold which at least 95 % of the images inside pass; lower is better.

    Args:
        inside, outside: scores (n,) and (m,) of images of the classes and of other images.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    score = np.concatenate([inside, outside])
    false_positive, true_positive, _ = roc_curve(truth, score, drop_intermediate=False)
    passed = int(np.argmax(true_positive >= RECALL))
    return {"auroc": 100.0 * float(roc_auc_score(truth, score)), "fpr95": 100.0 * float(false_positive[passed])}
