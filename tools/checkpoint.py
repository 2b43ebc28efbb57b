"""One table of everything that was measured of a checkpoint: python -m tools.checkpoint FOLDER... [--markdown FILE].

FOLDER holds runs in FOLDER/<part>/<set>/result.json, as scripts/uta/evaluate.sh leaves them; several folders are
columns of one table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.engine.status import read_result, run_state
from experiments.status import main_figure

RETRIEVAL = {"mean_recall": "mean recall"} | {
    f"{way}_r{depth}": f"{text} R@{depth}"
    for way, text in (("image_to_text", "image to text"), ("text_to_image", "text to image"))
    for depth in (1, 5, 10)
}


def read_folder(folder: Path) -> dict[tuple[str, str, str], float]:
    """Percent by (part, set, figure) of all finished runs below a folder.

    Raises:
        FileNotFoundError: there are none.
    """
    figures: dict[tuple[str, str, str], float] = {}
    for path in sorted(folder.glob("*/*/result.json")):
        if run_state(path.parent) != "done":
            continue
        result: dict[str, Any] = read_result(path.parent)
        names = RETRIEVAL if main_figure(result) == "mean_recall" else {"accuracy": "accuracy"}
        for name, text in names.items():
            figures[path.parent.parent.name, path.parent.name, text] = float(result[name])
    if not figures:
        raise FileNotFoundError(f'"{folder}" has no finished runs in <part>/<set>/')
    return figures


def table(columns: dict[str, dict[tuple[str, str, str], float]]) -> str:
    """Markdown table: a row per part, set and figure, a column per checkpoint; means after parts of several sets."""
    order = {part: place for place, part in enumerate(("zeroshot", "ensemble", "robustness", "probe", "retrieval"))}
    found = list(RETRIEVAL.values())
    rows = sorted(
        {key for figures in columns.values() for key in figures},
        key=lambda key: (order.get(key[0], 9), found.index(key[2]) if key[2] in found else 0, key[1]),
    )
    names = list({(part, figure): None for part, _, figure in rows})
    lines = ["| part | data set | figure | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
    for part, figure in names:
        members = [key for key in rows if (key[0], key[2]) == (part, figure)]
        if part != "retrieval" or figure == RETRIEVAL["mean_recall"]:
            for key in members:
                lines.append(_line(key[0], key[1], key[2], [figures.get(key) for figures in columns.values()]))
        if len(members) > 1 or part == "retrieval":
            means = [_mean([figures.get(key) for key in members]) for figures in columns.values()]
            lines.append(_line(part, f"mean of {len(members)}", figure, means))
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _line(part: str, name: str, figure: str, values: Sequence[float | None]) -> str:
    shown = ("-" if value is None else f"{value:.1f}" for value in values)
    return f"| {part} | {name} | {figure} | " + " | ".join(shown) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.checkpoint", description=(__doc__ or "").split(":")[0] + ".")
    parser.add_argument("folder", nargs="+", type=Path, help="results of one checkpoint; its name is the column's")
    parser.add_argument("--markdown", type=Path, help="file to write besides")
    args = parser.parse_args(argv)
    try:
        text = table({folder.name: read_folder(folder) for folder in args.folder})
        if args.markdown is not None:
            args.markdown.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
