"""Write the docs' tables of options from their declarations: python -m tools.option_tables [--check].

A table follows a heading of docs/engine.md, docs/pretraining.md or docs/methods/*.md that names a section, such as
"## Options (`TRAINER.COOP`)", up to the first line that is no part of a table.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import dense  # noqa: F401 - registers the dense tasks
import trainers  # noqa: F401 - registers the methods
from dassl.config import SCHEMA, Option
from dassl.engine.command import known_config

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADING = re.compile(r"^(#+ [^\n]*\(`([A-Z][\w.]*)`\)\n\n)((?:\|[^\n]*\n)*)", re.MULTILINE)


def row(key: str, option: Option) -> str:
    """One option as a row of a table."""
    default = option.default
    shown = str(default) if not isinstance(default, str) or default else '""'
    if isinstance(default, str) and " " in default:
        shown = f'"{default}"'
    values = option.expected().removeprefix("one of ")
    return f"| {key} | {shown} | {values} | {option.help} |".replace("*", r"\*")


def table(section: str) -> str:
    """All options below a section."""
    prefix = f"{section}."
    rows = [row(key.removeprefix(prefix), option) for key, option in SCHEMA.items() if key.startswith(prefix)]
    if not rows:
        raise KeyError(f"no option is declared below {section}")
    return "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows, ""])


def rewritten(text: str) -> str:
    """A page with the tables that its options have now."""
    return HEADING.sub(lambda match: match[1] + table(match[2]), text)


def pages() -> list[Path]:
    return [path for path in sorted(DOCS.rglob("*.md")) if HEADING.search(path.read_text(encoding="utf-8"))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.option_tables", description="Write the docs' option tables.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is out of date")
    check = parser.parse_args(argv).check
    known_config()  # declares the options of all methods
    old = [path for path in pages() if rewritten(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]
    for path in old:
        print(f"{'out of date' if check else 'written'}: {path}")
        if not check:
            path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
