"""Cells and tables of Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
