"""The flags of report.py."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXTS, PICTURES = ("md", "csv", "tex", "html"), ("png", "svg", "pdf")
TESTS = ("wilcoxon", "t")

EPILOG = """\
exit code: 0 all runs are done, 1 some are missing (they are listed, with the command that makes them), 2 bad input, or
results that were not measured alike. More: docs/reports.md
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tables and figures of a recipe from the result.json of its runs, beside the published numbers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="yaml file, or name of one in recipes/")
    parser.add_argument(
        "--claims",
        metavar="FILE",
        nargs="?",
        const="",
        help="instead of a recipe: the ledger of claims, claims.md (default recipes/claims/ledger.yaml)",
    )
    parser.add_argument(
        "--scales", metavar="LIST", default="", help="of the ledger, such as vit_b16 or embedded,tokens"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder of the report (default output/reports/RECIPE)"
    )
    parser.add_argument("--runs", metavar="DIR", help="folder of all runs (default: $OUTPUT or output)")
    parser.add_argument(
        "--format",
        metavar="LIST",
        type=_formats,
        default=TEXTS,
        help=f"of {','.join((*TEXTS, *PICTURES))} (default {','.join(TEXTS)}); pictures become separate files",
    )
    parser.add_argument("--logs", metavar="DIR", type=Path, help="also log.txt of runs of the original CoOp family")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), action="append", help="paired test of method B against A; repeatable"
    )
    parser.add_argument("--test", choices=TESTS, default=TESTS[0], help="of --compare (default %(default)s)")
    parser.add_argument("--baseline", metavar="METHOD", help="of the heat maps of differences (default: the first)")
    parser.add_argument("--trust", action="store_true", help="run modules from elsewhere that the recipe imports")
    parser.add_argument("--no-links", action="store_true", help="no links to the files of the runs, to pass a page on")
    return parser


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    wrong = [name for name in names if name not in (*TEXTS, *PICTURES)]
    if wrong:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)!r}: choose from {', '.join((*TEXTS, *PICTURES))}")
    return names
