"""Tables as text: Markdown, CSV and LaTeX; and the rows of a few finished runs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    """Text that stands in a cell as it is; an underscore inside of a word needs no escape."""
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
        left: how many columns are text; the others are numbers, to the right.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    shown = [
        "| " + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]]) + "\n"


def csv_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A table environment that needs the package booktabs.

    Args:
        rows: cells that are LaTeX already (`escape_latex`); a row without cells is a rule.
        caption: LaTeX.
    """
    lines = [
        r"\begin{table}[t]",
        r"\centering\small",
        f"\\caption{{{caption}}}",
        f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        # After \\ a row that begins with [ or * would be taken for an argument of it.
        *("{}" * row[0].startswith(("[", "*")) + " & ".join(row) + r" \\" if row else r"\midrule" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


class Column(NamedTuple):
    """A column of a table of runs: its title, where its value comes from, and how the value is shown."""

    title: str
    value: Callable[[dict[str, Any]], Any]
    form: str = "{}"


def percent(key: str, title: str) -> Column:
    return Column(title, lambda result: result[key], "{:.1f}")


METHOD = Column("method", lambda result: result["method"])
COST = (
    Column("trainable parameters", lambda result: result["trainable_parameters"], "{:,}"),
    Column("seconds", lambda result: result["elapsed_seconds"], "{:.0f}"),
    Column("images/s", lambda result: result["images_per_second"], "{:.0f}"),
)
SUMMARY = (METHOD, percent("accuracy", "accuracy"), percent("macro_f1", "macro-F1"), *COST)


def load_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """result.json of each run, in the order given.

    Raises:
        FileNotFoundError: a run is not done; the message says how far it is.
        ValueError: the runs were measured on different test images, classes or backbones, so that they cannot stand in
            one table.
    """
    results = [read_result(folder) for folder in folders]
    for key in ("test_split", "classnames", "backbone"):
        found = {str(result["fingerprint"][key]) for result in results}
        if len(found) > 1:
            shown = ", ".join(f"{folder}: {result['fingerprint'][key]}" for folder, result in zip(folders, results))
            raise ValueError(f"these runs cannot be compared, their {key} differs ({shown}): run them again alike")
    return results


def cells(results: Sequence[dict[str, Any]], columns: Sequence[Column] = SUMMARY) -> list[list[str]]:
    """Shown values, a row per result; a value that was not measured is a dash."""
    return [
        ["-" if column.value(result) is None else column.form.format(column.value(result)) for column in columns]
        for result in results
    ]


def markdown(results: Sequence[dict[str, Any]], columns: Sequence[Column] = SUMMARY) -> str:
    """Runs as a Markdown table."""
    rows = [[escape_markdown(cell) for cell in row] for row in cells(results, columns)]
    return markdown_table([column.title for column in columns], rows)


def comma_separated(results: Sequence[dict[str, Any]], columns: Sequence[Column] = SUMMARY) -> str:
    """Runs as CSV with a header and unrounded values; empty where nothing was measured."""
    return csv_table(
        [column.title for column in columns], [[column.value(result) for column in columns] for result in results]
    )
