"""Finished runs as rows, and rows as text, Markdown or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dassl.engine.run import read_result


class Column(NamedTuple):
    """A column of a table: its title, where its value comes from, and how the value is shown."""

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
    """Markdown table with aligned columns, also readable as plain text."""
    rows = [[column.title for column in columns], *cells(results, columns)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) + " |"
        for row in rows
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def comma_separated(results: Sequence[dict[str, Any]], columns: Sequence[Column] = SUMMARY) -> str:
    """CSV with a header and unrounded values; empty where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.title for column in columns])
    writer.writerows([[column.value(result) for column in columns] for result in results])
    return text.getvalue()
