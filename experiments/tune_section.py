"""Read and check the section `tune` of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from experiments.recipe import Dimension, Method, Tune, config_file

if TYPE_CHECKING:
    from experiments.recipe_file import _Reader

_KEYS = ("dataset", "shots", "seed", "trials", "at_once", "methods", "space", "own")
_RANGE = ("low", "high", "log")
_MOST_TRIALS = 10_000
MOST_OWN = 2  # options of a method's own, so that none has a larger search than the others


def read_tune(reader: _Reader, value: Any, task: str, methods: Sequence[Method]) -> Tune | None:
    """The section `tune`; its errors are added to those of the reader, and None returned where there are any."""
    before = len(reader.problems)
    if not isinstance(value, Mapping):
        reader.problems.append(f"tune is {value!r}, expected keys and values: {', '.join(_KEYS)}")
        return None
    reader.unknown(value, _KEYS, "in tune")
    if task == "incremental":
        reader.problems.append("tune is not possible in task incremental, whose steps start from one another")
    dataset = reader.text(value.get("dataset", ""), "dataset in tune")
    reader.configs("configs/datasets", [dataset], "dataset in tune")
    shots, seed, trials, at_once = (
        _number(reader, value.get(key, default), key, lowest)
        for key, default, lowest in (("shots", None, 1), ("seed", 1, 0), ("trials", None, 1), ("at_once", 1, 1))
    )
    known = {method.name: method for method in methods}
    names = reader.names(value.get("methods") or list(known), "methods in tune")
    own = value.get("own", {})
    reader.problems += [
        f"methods in tune has {name!r}, expected one of the recipe's methods: {', '.join(known)}"
        for name in names
        if name not in known
    ]
    chosen = [known[name] for name in names if name in known]
    space = _space(reader, value.get("space"), "space in tune", chosen[:1])
    if not isinstance(own, Mapping) or not set(own) <= set(names):
        reader.problems.append(f"own in tune is {own!r}, expected METHOD: {{KEY: VALUES}} with methods that are tuned")
        own = {}
    spaces = {
        name: _space(reader, keys, f"own of {name} in tune", [known[name]])
        for name, keys in own.items()
        if name in known
    }
    shared = {dimension.key for dimension in space}
    for name, dimensions in spaces.items():
        if len(dimensions) > MOST_OWN:
            reader.problems.append(f"own of {name} in tune has {len(dimensions)} options, expected at most {MOST_OWN}")
        if both := sorted(shared.intersection(dimension.key for dimension in dimensions)):
            reader.problems.append(f"own of {name} in tune has {both[0]}, which is in space already")
    if len(reader.problems) > before:
        return None
    return Tune(dataset, shots, seed, trials, at_once, names, space, tuple(spaces.items()))


def _number(reader: _Reader, value: Any, key: str, lowest: int) -> int:
    if type(value) is int and lowest <= value <= (2**32 - 1 if key == "seed" else _MOST_TRIALS):
        return value
    reader.problems.append(f"{key} in tune is {value!r}, expected a number from {lowest}")
    return lowest


def _space(reader: _Reader, value: Any, where: str, methods: Sequence[Method]) -> tuple[Dimension, ...]:
    """Dimensions, whose keys and outermost values are checked against the config of each of `methods`."""
    if not isinstance(value, Mapping) or not value:
        reader.problems.append(f"{where} is {value!r}, expected KEY: [VALUE, ...] or KEY: {{low: 0.1, high: 1}}")
        return ()
    found = [_dimension(reader, str(key), entry, where) for key, entry in value.items()]
    dimensions = tuple(dimension for dimension in found if dimension is not None)
    tried = {dimension.key: dimension.values or (dimension.low, dimension.high) for dimension in dimensions}
    for method in methods:
        config = config_file(f"configs/trainers/{method.trainer}", method.config)
        problems = len(reader.problems)
        for index in range(max(map(len, tried.values()), default=0)):
            if len(reader.problems) == problems:  # an unknown key is said once
                probe = {key: values[min(index, len(values) - 1)] for key, values in tried.items()}
                reader.options(probe, where, config)
    return dimensions


def _dimension(reader: _Reader, key: str, entry: Any, where: str) -> Dimension | None:
    if key.startswith("TEST."):
        reader.problems.append(f"{where}: {key} decides how a run is evaluated, which is not tuned")
        return None
    if isinstance(entry, list):
        if len(entry) > 1 and all(isinstance(item, (str, int, float)) for item in entry):
            reader.once(entry, f"{key} in {where}")
            return Dimension(key, tuple(entry))
    elif isinstance(entry, Mapping) and set(entry) <= set(_RANGE):
        low, high, log = entry.get("low"), entry.get("high"), entry.get("log", False)
        if type(low) in (int, float) and type(high) in (int, float) and type(log) is bool:
            ends = cast(float, low), cast(float, high)
            if all(map(math.isfinite, ends)) and ends[0] < ends[1] and (ends[0] > 0 or not log):
                return Dimension(key, (), *ends, log)
    reader.problems.append(
        f"{where}: {key} is {entry!r}, expected a list of two or more values, or low < high with log: true or false "
        "(low above 0 with log)"
    )
    return None
