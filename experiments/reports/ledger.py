"""The declared file of claims: what papers say, and the experiment that tests it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dassl.utils.yaml_files import load_yaml
from experiments import Recipe, load_recipe
from experiments.recipe import RECIPES
from experiments.reports.published import AVERAGE, PublishedValue, load
from experiments.settings import SETTINGS, step_parts

LEDGER = RECIPES / "claims" / "ledger.yaml"
_KEYS = ("scales", "recipes", "claims")
_CLAIM_KEYS = (
    "claim",
    "paper",
    "where",
    "setting",
    "better",
    "than",
    "shots",
    "part",
    "published",
    "figure",
    "headline",
)
_NEEDED = _CLAIM_KEYS[:3]
_EXPERIMENT = ("setting", "better", "than")


class LedgerError(ValueError):
    """A file of claims that cannot be used; the message lists all its errors."""


@dataclass(frozen=True)
class Claim:
    """A method is more accurate than another, as a paper says it is."""

    text: str
    paper: str
    where: str
    setting: str
    better: str
    than: str
    shots: int | None
    """None: the only number that the recipe of a scale has."""
    part: str
    figure: str
    """What the paper prints: the difference in points, or words; "" if it could not be read."""
    headline: bool
    """Shown on the first page."""


@dataclass(frozen=True)
class Ledger:
    """Claims and the recipes of each scale that is to be shown, by scale and setting."""

    scales: tuple[str, ...]
    recipes: Mapping[tuple[str, str], Recipe]
    claims: tuple[Claim, ...]


def load_ledger(path: Path = LEDGER, scales: str = "") -> Ledger:
    """Read and check a file of claims.

    Args:
        scales: names of scales separated by commas, in the place of the file's own; "": those of the file.

    Raises:
        OSError: there is no such file.
        LedgerError: it is no YAML, or has unknown keys, scales, recipes, methods or figures, or claims without an
            experiment; all at once.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise LedgerError(f'"{path}" is not valid YAML: {err}') from err
    reader = _Reader(path)
    ledger = reader.read(content, tuple(filter(None, scales.split(","))))
    if reader.problems:
        raise LedgerError(f'claims "{path}": ' + "; ".join(reader.problems))
    return ledger


class _Reader:
    """Turns the content of the file into a ledger and gathers its errors."""

    def __init__(self, path: Path):
        self.path = path
        self.problems: list[str] = []

    def read(self, content: Any, scales: tuple[str, ...]) -> Ledger:
        if not isinstance(content, Mapping) or not all(content.get(key) for key in _KEYS):
            self.problems.append(f"expected the keys {', '.join(_KEYS)}")
            return Ledger((), {}, ())
        self.unknown(content, _KEYS, "")
        known = content["recipes"] if isinstance(content["recipes"], Mapping) else {}
        scales = scales or tuple(content["scales"])
        for scale in scales:
            if not isinstance(known.get(scale), Mapping):
                self.problems.append(f"there is no scale {scale!r}, recipes has {', '.join(map(str, known)) or 'none'}")
        recipes = {
            (scale, str(setting)): recipe
            for scale in scales
            for setting, name in (known.get(scale) or {}).items()
            if (recipe := self.recipe(str(name), f"scale {scale}")) is not None
        }
        # without its recipes a claim cannot be checked
        entries = content["claims"] if isinstance(content["claims"], list) and not self.problems else []
        settings = {str(setting) for scale in scales for setting in known.get(scale) or {}}
        claims = [claim for entry in entries for claim in self.claim(entry, recipes, settings)]
        keys = [(claim.text, claim.shots) for claim in claims]
        self.problems += [f"the claim {key[0]!r} stands twice" for key in sorted(set(keys)) if keys.count(key) > 1]
        return Ledger(scales, recipes, tuple(claims))

    def unknown(self, entry: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
        self.problems += [
            f"{where}unknown key {key!r}, expected one of {', '.join(known)}" for key in entry if key not in known
        ]

    def recipe(self, name: str, where: str) -> Recipe | None:
        try:
            beside = self.path.parent / name
            return load_recipe(beside if beside.is_file() else name)
        except (OSError, ValueError) as err:
            self.problems.append(f"{where}: {err}")
            return None

    def claim(self, entry: Any, recipes: Mapping[tuple[str, str], Recipe], settings: set[str]) -> list[Claim]:
        """The claim at each of its numbers of shots."""
        missing = [key for key in _NEEDED if not isinstance(entry, Mapping) or not entry.get(key)]
        if missing:
            self.problems.append(f"{', '.join(missing)} is missing in {entry!r}")
            return []
        where = f'claim "{entry["claim"]}": '
        self.unknown(entry, _CLAIM_KEYS, where)
        missing = [key for key in _EXPERIMENT if entry.get(key) in (None, "")]
        if missing:
            self.problems.append(f"{where}it has no experiment, {', '.join(missing)} is missing")
            return []
        setting = str(entry["setting"])
        numbers = entry["shots"] if isinstance(entry.get("shots"), list) else [entry.get("shots")]
        if setting not in settings:
            self.problems.append(f"{where}setting is {setting!r}, expected one of {', '.join(sorted(settings))}")
            return []
        part = str(entry.get("part", ""))
        for (scale, name), recipe in recipes.items():
            if name != setting:
                continue
            parts = SETTINGS[recipe.task].parts or step_parts(recipe.sets)
            part = part or parts[-1]
            if part not in parts:
                self.problems.append(f"{where}part is {part!r}, expected one of {', '.join(parts)}")
            methods = {method.name: method for method in recipe.methods}
            for method in (str(entry["better"]), str(entry["than"])):
                if method not in methods:
                    self.problems.append(
                        f"{where}{recipe.path.name} ({scale}) has no method {method!r}, it has {', '.join(methods)}"
                    )
                    continue
                own = methods[method].shots
                wrong = [shots for shots in numbers if shots not in own and (shots is not None or len(own) > 1)]
                if wrong and own != (0,):
                    self.problems.append(
                        f"{where}shots is {wrong[0]}, {method} has {own} in {recipe.path.name} ({scale})"
                    )
        text, paper, place, better, than = (str(entry[key]) for key in ("claim", "paper", "where", "better", "than"))
        figures = [
            str(entry.get("figure", "")) or self.printed(entry.get("published"), shots, where) for shots in numbers
        ]
        headline = bool(entry.get("headline"))
        return [
            Claim(text, paper, place, setting, better, than, shots, part, figure, headline)
            for shots, figure in zip(numbers, figures)
        ]

    def printed(self, entry: Any, shots: Any, where: str) -> str:
        """Difference of two published figures, with their provenance unless both were printed by the authors."""
        if entry is None:
            return ""
        try:
            table = load([entry["table"]])
            found: list[PublishedValue] = []
            for method in (entry["better"], entry["than"]):
                place = (entry["task"], method, entry.get("dataset", AVERAGE), entry.get("metric", "accuracy"))
                number = table.find(*place, entry.get("shots", 0 if method == "CLIP" else shots))
                if number is None:
                    raise ValueError(f"{entry['table']} has no {', '.join(place)} at {shots} shots")
                found.append(number)
        except (OSError, ValueError, KeyError, TypeError) as err:
            self.problems.append(
                f"{where}published: {err!r}" if isinstance(err, KeyError) else f"{where}published: {err}"
            )
            return ""
        marks = sorted({number.provenance for number in found} - {"published"})
        return f"{found[0].value - found[1].value:+.1f}" + (f" ({', '.join(marks)})" if marks else "")
