"""Incremental learning: accuracy and forgetting after each step, from the accuracies of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import step_part

BySeed = Mapping[int, float]

# metric: (description, first step that has it)
STEP_METRICS = {
    "current": ("accuracy on the set just learned", 1),
    "old": ("mean accuracy on the old sets", 2),
    "joint": ("accuracy on all classes so far", 1),
    "forgetting": ("forgetting", 2),
}


def over_seeds(function: Callable[[list[float]], Any], parts: Sequence[BySeed]) -> dict[int, float]:
    """`function` of the values of all parts, for each seed that every part has."""
    seeds = [seed for seed in parts[0] if all(seed in part for part in parts)] if parts else []
    return {seed: float(function([part[seed] for part in parts])) for seed in seeds}


def step_values(accuracy: Mapping[str, BySeed], sets: int) -> dict[tuple[str, int], dict[int, float]]:
    """Metrics of every step by seed, for seeds with all the runs that a metric needs.

    Args:
        accuracy: percent by part (see `experiments.step_parts`) and seed; parts may be missing.
        sets: number of sets of classes.

    Returns:
        by metric and step: `current`, on the set of the step; `old`, mean of the accuracies on each earlier set;
        `joint`, on the classes of all sets so far, of which any may be predicted; `forgetting`, in points, mean over
        the earlier sets of the accuracy right after a set's own step minus the accuracy now.
    """
    found: dict[tuple[str, int], dict[int, float]] = {}
    for step in range(1, sets + 1):
        found["current", step] = dict(accuracy.get(step_part(step), {}))
        joint = step_part(1) if step == 1 else step_part(step, "joint")
        found["joint", step] = dict(accuracy.get(joint, {}))
        if step > 1:
            earlier = range(1, step)
            before = over_seeds(np.mean, [accuracy.get(step_part(k), {}) for k in earlier])
            now = found["old", step] = over_seeds(np.mean, [accuracy.get(step_part(step, k), {}) for k in earlier])
            found["forgetting", step] = over_seeds(lambda pair: pair[0] - pair[1], [before, now])
    return found
