"""Concepts (Unicode emoji) and the artwork that belongs to them.

Sets with a character map (or code points in file names) are matched by code point. Sets without one are matched by
name: the label of today's CLDR first, then the Unicode character name, then the shortcodes in use. Every drawing serves
one concept.
"""

import json
import re
from pathlib import Path

_GROUPS_LEFT_OUT = ("component", "flags")
_SUBGROUPS_LEFT_OUT = ("keycap", "alphanum")
_SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels", "emojibase-legacy")
_NUMBER = re.compile(r"-\d$")


def plain_hex(code: str) -> str:
    """Upper-case code points joined by '-', without the variation selector FE0F."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_concepts(folder: Path) -> list[dict]:
    """Concepts of the emojibase-data package in `folder`, in Unicode order.

    Each has code, label, tags, group, subgroup and names (every other name it is known by).
    """
    meta = json.loads((folder / "meta/groups.json").read_text(encoding="utf-8"))
    groups = {int(key): name for key, name in meta["groups"].items()}
    subgroups = {int(key): name for key, name in meta["subgroups"].items()}
    unicode_names = _by_code(folder / "meta/unicode-names.json")
    shortcodes = [_by_code(folder / f"en/shortcodes/{name}.json") for name in _SHORTCODES]
    concepts = []
    for entry in sorted(_entries(folder), key=lambda entry: entry.get("order", 0)):
        group, subgroup = groups.get(entry.get("group", -1)), subgroups.get(entry.get("subgroup", -1))
        if group is None or group in _GROUPS_LEFT_OUT or subgroup in _SUBGROUPS_LEFT_OUT:
            continue
        code = plain_hex(entry["hexcode"])
        names = list(unicode_names.get(code, []))
        names += [name for table in shortcodes for name in table.get(code, [])]
        concept = {"code": code, "label": entry["label"], "tags": entry.get("tags", [])}
        concepts.append({**concept, "group": group, "subgroup": subgroup, "names": list(dict.fromkeys(names))})
    return concepts


def _entries(folder: Path) -> list[dict]:
    return json.loads((folder / "en/data.json").read_text(encoding="utf-8"))


def _by_code(path: Path) -> dict[str, list[str]]:
    table = json.loads(path.read_text(encoding="utf-8"))
    return {plain_hex(code): [value] if isinstance(value, str) else list(value) for code, value in table.items()}


def name_key(name: str) -> str:
    """Letters and digits of a name in lower case: 'Index-Pointing up' -> 'indexpointingup'."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("&", " and ").replace("ñ", "n").replace("’", ""))


def match_by_name(concepts: list[dict], names: list[str], aliases: dict[str, str]) -> dict[int, str]:
    """Concept index -> drawing. `names` are the drawings, `aliases` further names of some of them.

    Earlier rounds win: label, Unicode name, shortcodes. A drawing is given to one concept only.
    """
    drawings: dict[str, str] = {}
    for name in names:
        drawings.setdefault(name_key(name), name)
    for alias, parent in aliases.items():
        drawings.setdefault(name_key(alias), parent)
    for name in sorted(names):  # numbered variants of one drawing: the first one stands for the name
        drawings.setdefault(name_key(_NUMBER.sub("", name)), name)
    rounds = [
        [[concept["label"]] for concept in concepts],
        [[concept["names"][0]] if concept["names"] else [] for concept in concepts],
        [concept["names"][1:] for concept in concepts],
    ]
    found: dict[int, str] = {}
    used: set[str] = set()
    for candidates in rounds:
        for index, known in enumerate(candidates):
            if index in found:
                continue
            for name in known:
                drawing = drawings.get(name_key(name))
                if drawing is not None and drawing not in used:
                    found[index] = drawing
                    used.add(drawing)
                    break
    return dict(sorted(found.items()))


def match_by_code(concepts: list[dict], drawings: dict[str, str]) -> dict[int, str]:
    """Concept index -> drawing, where `drawings` maps code points (any case, with or without FE0F) to drawings."""
    plain = {plain_hex(code): drawing for code, drawing in drawings.items()}
    return {index: plain[concept["code"]] for index, concept in enumerate(concepts) if concept["code"] in plain}
