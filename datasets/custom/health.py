"""Health check of custom images (DATASET.NAME folder): class folders, tables and parquet files."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dassl.data.audit import class_findings
from dassl.data.fingerprint import classnames_hash, split_hash
from datasets.custom.folder import Folder, check_duplicates, class_names, class_numbers, find_options, read_rows
from datasets.custom.options import Options
from datasets.custom.tables import SPLITS, Row
from datasets.prepare import SAMPLES
from datasets.prepare.health import Report, check_decoding, check_files
from datasets.prepare.health import check_duplicates as check_contents
from datasets.prepare.splits import Splits

__all__ = ["NAME", "examine_own"]

NAME = "folder"
FEW = 4


def examine_own(root: str | os.PathLike[str], full: bool = False, samples: int = SAMPLES, quiet: bool = True) -> Report:
    """Look over a folder, a table or a dataset.yaml as DATASET.ROOT names it.

    Nothing is written: images in parquet files are unpacked into a temporary folder, which goes away.

    Args:
        root: the value of DATASET.ROOT.
        full: decode every image, and look for duplicates in large data sets as well.
        samples: images to decode otherwise, spread evenly over all of them.
    """
    report = Report(NAME, os.path.abspath(os.path.expanduser(root)))
    with tempfile.TemporaryDirectory() as cache, _warnings(report):
        try:
            place, options = find_options(str(root))
            rows, images, known = read_rows(place, options, Path(cache))
        except PermissionError as err:
            report.add("error", "layout", f'"{err.filename}" may not be read', f'chmod -R u+rX "{report.folder}"')
            return report
        except (OSError, ValueError, ImportError) as err:
            report.add("error", "layout", str(err), _layout_fix(err))
            return report
        report.folder = str(images)
        splits = _read(report, rows, str(place), images, options, known, Path(cache))
        paths = dict.fromkeys(os.path.join(images, *row.path.split("/")) for row in rows)
        sizes = check_files(report, paths, lambda missing: "put them in place, or take them out of the table")
        check_decoding(report, list(sizes), full, samples, quiet, lambda damaged: "replace them, or take them out")
        if splits is not None:
            check_contents(report, splits, sizes, full)
        if os.path.commonpath([cache, images]) == os.path.abspath(cache):
            report.folder = os.path.abspath(os.path.expanduser(root))  # not the temporary folder
    return report


def _read(
    report: Report, rows: list[Row], place: str, images: Path, options: Options, known: list[str] | None, cache: Path
) -> Splits | None:
    """Counts, classes and splits as the reader makes them; None if it could not."""
    try:
        check_duplicates(rows)
        numbers = class_numbers(rows, place)
        names = class_names(rows, numbers, options, known, place)
        reader = Folder.__new__(Folder)  # not built: that ends at the first missing image
        reader.items_root = str(images)
        splits = reader.split_rows(rows, numbers, names, options, cache)
    except (OSError, ValueError) as err:
        report.add("error", "items", str(err), "put it right in the table, the folders or dataset.yaml")
        return None
    report.counts = {part: len(items) for part, items in zip(SPLITS, splits)}
    report.classes, report.split = len(names), reader.split_origin or "given"
    report.hashes["class names"] = classnames_hash(names)
    for part, items in zip(SPLITS, splits):
        if items:
            report.hashes[f"{part} items"] = split_hash(items, images)
    _check_classes(report, splits, names)
    return splits


def _check_classes(report: Report, splits: Splits, names: Sequence[str]) -> None:
    """Names that stand for two classes, and classes without images to learn from or to be tested on."""
    for finding in class_findings(names):
        report.add(*finding, "other names by `classnames` in dataset.yaml" if finding.check == "class names" else "")
    train, _val, test = (Counter(item.label for item in items) for items in splits)
    lacking = [names[label] for label in sorted(train) if label not in test]
    if lacking:
        text = f"{len(lacking)} classes have no test image: {', '.join(lacking[:5])}"
        report.add("warning", "classes", text, "no accuracy can be said of them; add test images")
    few = [names[label] for label in sorted(train) if train[label] < FEW]
    if few:
        text = f"{len(few)} classes have fewer than {FEW} training images: {', '.join(few[:5])}"
        report.add("note", "classes", text)
    sizes = sorted(train.values())
    report.add("note", "classes", f"training images per class: {sizes[0]} to {sizes[-1]}")


def _layout_fix(err: Exception) -> str:
    if isinstance(err, ImportError):
        return "pip install pyarrow"
    return "--root names your folder or table; docs/datasets.md shows what it may look like"


@contextmanager
def _warnings(report: Report) -> Iterator[None]:
    """Collect the warnings of the readers into the report instead of the log."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                report.add("warning", "reader", record.getMessage())

    logger, handler = logging.getLogger(__package__), Keep()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
