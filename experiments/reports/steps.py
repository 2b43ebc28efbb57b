"""Incremental learning: what a method knows after each step, worked out from the accuracies of its runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments import step_part

BySeed = Mapping[int, float]

# metric: (what it is, the first step that has it)
STEP_METRICS = {
    "current": ("accuracy on the set just learned", 1),
    "old": ("mean accuracy on the old sets", 2),
    "joint": ("accuracy on all classes so far", 1),
    "forgetting": ("forgetting", 2),
}


def step_values(accuracy: Mapping[str, BySeed], sets: int) -> dict[tuple[str, int], dict[int, float]]:
    """The figures of every step by seed, of the seeds that have all that a figure is worked out from.

    Args:
        accuracy: percent by part (see `tasks.step_parts`) and seed; parts may be missing.
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
        if step == 1:
            continue
        found["old", step] = _mean([accuracy.get(step_part(step, earlier), {}) for earlier in range(1, step)])
        before = _mean([accuracy.get(step_part(earlier), {}) for earlier in range(1, step)])
        found["forgetting", step] = {
            seed: before[seed] - value for seed, value in found["old", step].items() if seed in before
        }
    return found


def _mean(parts: list[BySeed]) -> dict[int, float]:
    """Mean over parts for each seed that all of them have."""
    return {
        seed: float(np.mean([part[seed] for part in parts])) for seed in parts[0] if all(seed in part for part in parts)
    }
