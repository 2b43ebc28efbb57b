"""The command `python report.py`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from dassl.config.imports import run_only
from dassl.utils import write_text
from dassl.utils.errors import error_line
from experiments import expand, load_recipe
from experiments.recipe import ROOT, WORK
from experiments.reports.claims import measure
from experiments.reports.claims import to_markdown as claims_page
from experiments.reports.compare import compare
from experiments.reports.document import Report, build_report
from experiments.reports.flags import PICTURES, build_parser
from experiments.reports.forms import gains_csv, to_csv, to_html, to_latex, to_markdown
from experiments.reports.ledger import LEDGER, load_ledger
from experiments.reports.logs import find_logs
from experiments.reports.plots import Plot, plots, save
from experiments.reports.published import load
from experiments.reports.run_results import place_logs, read_runs

MISSING, BAD_INPUT = 1, 2
SHOWN = 20  # missing cells on the screen; the report has all


def gather(args: argparse.Namespace) -> Report:
    """Everything the report shows.

    Raises:
        OSError: no such recipe, table or folder.
        ValueError: a faulty recipe or table, methods that are not there, or results that were not measured alike.
    """
    run_only(None if args.trust else (ROOT,))
    recipe = load_recipe(args.recipe)
    if recipe.untrusted:
        print(f"note: {recipe.name} is shown without its imports: {recipe.untrusted}", file=sys.stderr)
    runs = expand(recipe, output=None if args.runs is None else Path(args.runs).absolute())
    entries = read_runs(runs)
    if args.logs is not None:
        if not args.logs.is_dir():
            raise FileNotFoundError(f'there is no folder "{args.logs}" of logs')
        logs, problems = find_logs(args.logs)
        rows, rest = place_logs(recipe, logs, runs)
        entries += rows
        for folder, err in problems:
            print(f"left out: {folder}: {err}", file=sys.stderr)
        if rest:
            print(f"left out: {rest} logs of other tasks, data sets or shots than {recipe.name}", file=sys.stderr)
    table = load([Path(entry.file).stem for entry in recipe.published])
    report = build_report(recipe, runs, entries, table, _shown(recipe.path), _sweep_flags(args.runs))
    found = [entry for a, b in args.compare or () for entry in compare(report.blocks, a, b, args.test)]
    return replace(report, comparisons=tuple(found))


def _shown(path: Path) -> str:
    """A recipe as a command started in the project's folder names it."""
    path = path.resolve()
    return path.relative_to(WORK).as_posix() if path.is_relative_to(WORK) else str(path)


def _sweep_flags(runs: str | None) -> list[str]:
    return [] if runs is None else ["--output", runs]


def write(report: Report, figures: Sequence[Plot], folder: Path, formats: Sequence[str], links: bool) -> list[Path]:
    """The files of a report; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = report.recipe.name
    pictures = {
        kind: [folder / f"{name}_{plot.name}.{kind}" for plot in figures] for kind in PICTURES if kind in formats
    }
    for paths in pictures.values():
        for plot, path in zip(figures, paths):
            save(plot, path)
    shown = pictures.get("png") or pictures.get("svg") or []
    makers = {
        "md": lambda: to_markdown(report, [(plot.title, quote(path.name)) for plot, path in zip(figures, shown)]),
        "csv": lambda: to_csv(report),
        "tex": lambda: to_latex(report),
        "html": lambda: to_html(report, figures, folder, links),
    }
    files = []
    for kind, make in makers.items():
        if kind in formats:
            files.append(folder / f"{name}.{kind}")
            write_text(make(), files[-1])
    if "csv" in formats and (classes := gains_csv(report)):
        files.append(folder / f"{name}_classes.csv")
        write_text(classes, files[-1])
    return [*files, *(path for paths in pictures.values() for path in paths)]


def write_claims(args: argparse.Namespace) -> int:
    """Write the ledger of claims; returns the exit code.

    Raises:
        OSError, ValueError: as of `load_ledger` and `measure`.
    """
    run_only(None if args.trust else (ROOT,))
    ledger = load_ledger(Path(args.claims) if args.claims else LEDGER, args.scales)
    findings = measure(ledger, None if args.runs is None else Path(args.runs).absolute())
    folder = args.output or Path(os.environ.get("OUTPUT") or WORK / "output") / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claims.md"
    path.write_text(claims_page(ledger, findings), encoding="utf-8")
    missing = sum(bool(found.missing) for found in findings)
    print(f"{len(findings) - missing} of {len(findings)} experiments of the claims are done")
    print(f"written: {path}")
    return MISSING if missing else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if (args.recipe is None) == (args.claims is None):
        parser.error("give either a recipe or --claims")
    try:
        if args.claims is not None:
            return write_claims(args)
        report = gather(args)
        folder = args.output or Path(os.environ.get("OUTPUT") or WORK / "output") / "reports" / report.recipe.name
        drawing = {"html", *PICTURES} & set(args.format)
        figures = plots(report, args.baseline) if drawing else []
        files = write(report, figures, folder, args.format, not args.no_links)
    except (OSError, ValueError) as err:
        print(f"error: {error_line(err)}", file=sys.stderr)
        return BAD_INPUT
    print(f"{report.recipe.title}: {report.done} of {report.asked} runs done")
    for line in report.machines:
        print(f"averaged over different machines: {line}")
    for entry in report.missing[:SHOWN]:
        print(f"missing: {entry.text()}")
        print(f"  {entry.command}")
    if len(report.missing) > SHOWN:
        print(f"and {len(report.missing) - SHOWN} more, see the report; all of them: python sweep.py {report.path}")
    print("\n".join(f"written: {path}" for path in files))
    return MISSING if report.missing else 0
