"""Icons with names: an optional second source of pairs for pre-training, kept in the user's cache."""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.embedded.match import name_key

from . import concepts, pack

LONGEST = 4  # words of a name

# Variants of one icon that are drawn, by the suffix of the name; "" is the plain name.
VARIANTS = {
    "ph": ("", "fill"),
    "solar": ("bold-duotone",),
    "mingcute": ("fill",),
    "meteocons": ("fill",),
}
_SUFFIXES = re.compile(
    r"-(outline|fill|line|bold|duotone|thin|light|linear|broken|24px|stroked|one|two|three|four|variant|simple|alt\d?|jp|\d+)$"
)
_NOT_PICTURES = re.compile(
    r"\b(logo|brand|letter|numeric|alpha|format|align|keyboard|file|sort|border|filter|axis|github|google)\b"
)


def icons_path() -> Path:
    """Folder of the packed icons, below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "align-prompt" / "embedded" / "icons.xz"


def clean_name(name: str) -> tuple[str, str]:
    """Words of an icon's name, and the suffix that says how it is drawn: 'cat-face-fill' -> ('cat face', 'fill').

    The name is "" if it says nothing: a single letter, a number, a brand or too many words.
    """
    suffix: list[str] = []
    while found := _SUFFIXES.search(name):
        suffix.insert(0, found.group(1))
        name = name[: found.start()]
    words = name.split("-")
    plain = " ".join(words)
    if len(words) > LONGEST or not re.fullmatch(r"[a-z ]{3,}", plain) or _NOT_PICTURES.search(plain):
        return "", "-".join(suffix)
    return plain, "-".join(suffix)


def choose(set_name: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Icons to draw of one set as (icon name, words): each name once for every variant in VARIANTS."""
    seen = set()
    for name in sorted(names):
        words, suffix = clean_name(name)
        variant = suffix if set_name in VARIANTS else ""
        if not words or (words, variant) in seen or (set_name in VARIANTS and suffix not in VARIANTS[set_name]):
            continue
        seen.add((words, variant))
        yield name, words


def concept_of(words: str) -> int:
    """Id of the emoji concept of that label, -1 if there is none."""
    return _labels().get(name_key(words), -1)


@functools.cache
def _labels() -> dict[str, int]:
    return {name_key(concept.label): index for index, concept in enumerate(concepts())}


def save_icons(path: Path, rows: list[list], images: np.ndarray) -> None:
    """Write the packed images and, beside them, the names as JSON; the names last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack.encode(np.arange(len(rows)), images))
    path.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")


def load_icons(path: Path | None = None) -> tuple[list[list], np.ndarray] | None:
    """Rows [set, words, concept id or -1] and premultiplied images (n, 64, 64, 4); None if icons were not built."""
    path = icons_path() if path is None else path
    if not path.with_suffix(".json").is_file():
        return None
    rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    ids, images = pack.decode(path)
    if len(ids) != len(rows):
        raise ValueError(f"{path} has {len(ids)} images but {len(rows)} names; run the build with --icons again")
    return rows, images
