"""Markdown, CSV and LaTeX tables, and the table of a few finished runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dassl.engine.status import read_result

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_markdown(text: str) -> str:
    """Text for a cell, with Markdown's characters escaped; an underscore within a word needs no escape."""
    text = re.sub(r"([\\`*|<>\[\]~$]|&(?=#?\w+;))", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def code_markdown(text: str) -> str:
    """Text as code in a line of Markdown."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown with aligned columns, also readable as plain text.

    Args:
        rows: cells that are Markdown already (`escape_markdown`).
        left: number of text columns, aligned left; the others hold numbers, aligned right.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    shown = [
        "| " + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]]) + "\n"


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign, a real minus; "-" for None."""
    if value is None:
        return "-"
    rounded = round(value, digits) + 0.0
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else '±'}{abs(rounded):.{digits}f}"


# key of result.json: (title, format)
SUMMARY = {
    "method": ("method", "{}"),
    "accuracy": ("accuracy", "{:.1f}"),
    "macro_f1": ("macro-F1", "{:.1f}"),
    "trainable_parameters": ("trainable parameters", "{:,}"),
    "elapsed_seconds": ("seconds", "{:.0f}"),
    "images_per_second": ("images/s", "{:.0f}"),
}


def load_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """result.json of each run, in the order given.

    Raises:
        FileNotFoundError: a run is not done; the message gives its state.
        ValueError: the runs were measured on different test images, classes or backbones, so that they cannot stand in
            one table.
    """
    results = [read_result(folder) for folder in folders]
    for key in ("test_split", "classnames", "backbone"):
        found = [result["fingerprint"][key] for result in results]
        if len(set(map(str, found))) > 1:
            shown = ", ".join(f"{folder}: {value}" for folder, value in zip(folders, found))
            raise ValueError(f"these runs cannot be compared, their {key} differs ({shown}): run them again alike")
    return results


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Runs as a Markdown table; a value that was not measured is a dash."""
    rows = [
        ["-" if result[key] is None else form.format(result[key]) for key, (_, form) in SUMMARY.items()]
        for result in results
    ]
    return markdown_table([title for title, _ in SUMMARY.values()], [[*map(escape_markdown, row)] for row in rows])


def comma_separated(results: Sequence[dict[str, Any]]) -> str:
    """Runs as CSV with a header and unrounded values; empty where nothing was measured."""
    frame = pd.DataFrame([[result[key] for key in SUMMARY] for result in results], dtype=object)
    return frame.to_csv(index=False, header=[title for title, _ in SUMMARY.values()], lineterminator="\n")
