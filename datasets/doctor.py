"""Look over the folders of data sets: layout, counts, splits, class names, images, duplicates; say what to do.

    python -m datasets.doctor --root DATA                 every data set that is there
    python -m datasets.doctor EuroSAT --root DATA --full  decode every image
    python -m datasets.doctor folder --root MINE          custom images: a folder, a table or a dataset.yaml

Nothing is written but the reports that are asked for. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.prepare import SAMPLES

if TYPE_CHECKING:
    from datasets.prepare.health import Report

__all__ = ["as_markdown", "main"]


def as_markdown(reports: Sequence[Report]) -> str:
    """A table with a line per data set, and what is to be done."""
    lines = [
        "| data set | state | train | val | test | classes | split | decoded | compared |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        counts = " | ".join(str(report.counts.get(part, "-")) for part in ("train", "val", "test"))
        numbers = f"{report.classes or '-'} | {report.split or '-'} | {report.decoded} | {report.compared}"
        lines.append(f"| {report.name} | {_state(report)} | {counts} | {numbers} |")
    for report in reports:
        if report.findings:
            lines += ["", f"## {report.name}", ""]
        for finding in report.findings:
            lines.append(f"- {finding.level}, {finding.check}: {finding.text}")
            if finding.fix:
                lines.append(f"  - to do: `{finding.fix}`")
    return "\n".join(lines) + "\n"


def _state(report: Report) -> str:
    found = {level: report.count(level) for level in ("error", "warning")}
    return ", ".join(f"{number} {level}{'s' * (number > 1)}" for level, number in found.items() if number) or "ok"


def _print(report: Report) -> None:
    counts = ", ".join(f"{part} {number}" for part, number in report.counts.items()) or "not read"
    rest = (
        f"{report.classes} classes, split {report.split}, {report.decoded} images decoded, {report.compared} compared"
    )
    print(f"{report.name}: {_state(report)}\n  {report.folder}\n  {counts}{f'; {rest}' if report.counts else ''}")
    for finding in report.findings:
        print(f"  {finding.level}, {finding.check}: {finding.text}")
        if finding.fix:
            print(f"    to do: {finding.fix}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m datasets.doctor", description="Look over data sets.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="data sets, or `folder` for custom images; without a name all known ones that are there",
    )
    parser.add_argument(
        "--root",
        metavar="DATA",
        required=True,
        help="the data root; with `folder` your own folder, table or dataset.yaml",
    )
    parser.add_argument("--full", action="store_true", help="decode all images; compare those of large data sets too")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"images to decode otherwise ({SAMPLES})")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings as well")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the report as Markdown")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    # Imported here, so that --help is quick.
    from dassl.utils import write_json, write_text
    from datasets.custom.health import NAME as OWN
    from datasets.custom.health import examine_own
    from datasets.prepare.catalog import CATALOG
    from datasets.prepare.command import find_name
    from datasets.prepare.health import examine

    if args.samples < 1:
        parser.error(f"--samples is {args.samples}, expected at least 1")
    root = Path(args.root).expanduser()
    try:
        names = [OWN if name == OWN else find_name(name) for name in args.names]
    except ValueError as err:
        parser.error(str(err))
    names = names or [name for name, info in CATALOG.items() if (root / info.folder).is_dir()]
    if not names:
        print(
            f"there is no known data set in {root}. To get one: python -m datasets.prepare --list\n"
            f"If these are custom images: python -m datasets.doctor {OWN} --root {shlex.quote(str(root))}"
        )
        return 1
    reports = []
    for name in dict.fromkeys(names):
        if name == OWN:
            reports.append(examine_own(root, args.full, args.samples, args.quiet))
        else:
            reports.append(examine(name, root, args.full, args.samples, args.quiet))
        _print(reports[-1])
    if args.json:
        write_json([report.plain() for report in reports], args.json)
    if args.markdown:
        write_text(as_markdown(reports), args.markdown)
    bad = [report.name for report in reports if not report.ok or (args.strict and report.count("warning"))]
    print(f"\nnot in order: {', '.join(bad)}" if bad else "\nall in order")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
