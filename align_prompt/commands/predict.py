"""`predict`: classes of files, folders, globs, paths from standard input or a frame of a webcam."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from align_prompt.prediction import Prediction

FORMATS = ("table", "csv", "jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", metavar="RUN", help="folder of a finished run, checkpoint, bundle, or name of a CLIP")
    parser.add_argument(
        "pictures",
        metavar="PICTURE",
        nargs="*",
        help="files, folders (with all pictures below them), quoted patterns such as 'a/**/*.jpg', or - for paths "
        "from standard input",
    )
    parser.add_argument("--webcam", metavar="N", type=int, nargs="?", const=0, help="a frame of camera N (default 0)")
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="other classes than those of training")
    parser.add_argument("--classes-file", metavar="FILE", help="the same from a text file, one name per line")
    parser.add_argument("--top", metavar="K", type=int, default=5, help="classes per picture (default 5)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the output (default table)")
    parser.add_argument("--output", metavar="FILE", help="write there instead of to standard output")
    parser.add_argument("--sheet", metavar="PNG", help="also write a contact sheet with names and probabilities")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--batch-size", metavar="B", type=int, help="pictures computed at once")
    parser.add_argument("--workers", metavar="N", type=int, help="threads that read pictures")
    parser.add_argument(
        "--import", dest="imports", metavar="MODULE", action="append", default=[], help="as of train.py"
    )


def run(args: argparse.Namespace) -> int:
    """Predict; 1 if a picture could not be read."""
    if not args.pictures and args.webcam is None:
        raise ValueError("no pictures are given: name files, folders or patterns, - for standard input, or --webcam")
    names = args.classes
    if args.classes_file:
        names = [line.strip() for line in Path(args.classes_file).read_text(encoding="utf-8").splitlines()]
        names = [*(args.classes or ()), *filter(None, names)]
    import align_prompt

    paths = list(found_pictures(args.pictures))
    frames = [] if args.webcam is None else [webcam_frame(args.webcam)]
    model = align_prompt.load(args.model, names, args.device, args.imports)
    rows = model.stream([*paths, *frames], args.top, args.batch_size, args.workers)
    shown = progress(rows, len(paths) + len(frames))
    kept: list[Prediction] = []
    failed = 0
    with output(args.output) as file:
        for row in WRITERS[args.format](shown, file, min(args.top, len(model.classnames))):
            failed += bool(row.error)
            if args.sheet:
                kept.append(row)
    if args.sheet:
        from align_prompt.sheet import contact_sheet

        contact_sheet(kept, frames).save(args.sheet)
    if failed:
        print(f"{failed} of {len(paths) + len(frames)} pictures could not be read", file=sys.stderr)
    return int(failed > 0)


def found_pictures(arguments: Iterable[str]) -> Iterator[str]:
    """Paths of all pictures, in the order of the arguments; those of a folder or pattern sorted.

    Raises:
        FileNotFoundError: a folder without pictures, or a pattern that nothing fits.
    """
    from align_prompt.images import SUFFIXES

    for argument in arguments:
        if argument == "-":
            yield from filter(None, (line.rstrip("\n") for line in sys.stdin))
        elif os.path.isdir(argument):
            files = sorted(str(path) for path in Path(argument).rglob("*") if path.suffix.lower() in SUFFIXES)
            if not files:
                raise FileNotFoundError(f'the folder "{argument}" has no pictures ({", ".join(SUFFIXES)})')
            yield from files
        elif glob.has_magic(argument) and not os.path.exists(argument):
            files = sorted(path for path in glob.glob(argument, recursive=True) if os.path.isfile(path))
            if not files:
                raise FileNotFoundError(f"no file fits the pattern {argument!r}")
            yield from files
        else:
            yield argument


def webcam_frame(number: int) -> Any:
    """A frame of a camera as a PIL image.

    Raises:
        ImportError: opencv is not installed.
        OSError: there is no such camera, or it gives no frame.
    """
    try:
        import cv2
    except ImportError as err:
        raise ImportError("--webcam needs opencv: pip install opencv-python-headless") from err
    from PIL import Image

    camera = cv2.VideoCapture(number)
    try:
        good, frame = camera.read()
    finally:
        camera.release()
    if not good:
        raise OSError(f"camera {number} gives no frame")
    image = Image.fromarray(frame[:, :, ::-1].copy())
    image.filename = f"webcam {number}"  # type: ignore[attr-defined]
    return image


def progress(rows: Iterable[Prediction], total: int) -> Iterable[Prediction]:
    """The rows with a progress bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="picture", disable=not sys.stderr.isatty(), leave=False)


class output:
    """Standard output, or a file that appears when all is written."""

    def __init__(self, path: str | None):
        self.path = path

    def __enter__(self) -> TextIO:
        self.file: TextIO = sys.stdout if self.path is None else io.StringIO()
        return self.file

    def __exit__(self, kind: Any, err: Any, trace: Any) -> None:
        if self.path is not None and err is None:
            from dassl.utils import write_text

            assert isinstance(self.file, io.StringIO)
            write_text(self.file.getvalue(), self.path)


def write_csv(rows: Iterable[Prediction], file: TextIO, top: int) -> Iterator[Prediction]:
    """path, label, probability, then label and probability of the next classes, and error."""
    table = csv.writer(file, lineterminator="\n")
    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "probability")]
    table.writerow(["path", "label", "probability", *more, "error"])
    for row in rows:
        values = [value for pair in row.top for value in pair]
        table.writerow([row.source, *values, *[""] * (2 * top - len(values)), row.error])
        yield row


def write_jsonl(rows: Iterable[Prediction], file: TextIO, top: int) -> Iterator[Prediction]:
    """One object per picture: path, label, probability, top, error."""
    for row in rows:
        record: dict[str, Any] = {"path": row.source, "label": row.label, "probability": row.probability}
        record["top"] = [{"label": label, "probability": value} for label, value in row.top]
        if row.error:
            record = {"path": row.source, "error": row.error}
        print(json.dumps(record, ensure_ascii=False), file=file)
        yield row


def write_table(rows: Iterable[Prediction], file: TextIO, top: int) -> Iterator[Prediction]:
    """Path, then classes with percentages."""
    for row in rows:
        best = row.error or "  ".join(f"{label} {100 * value:.1f} %" for label, value in row.top)
        print(f"{row.source}: {'not read, ' if row.error else ''}{best}", file=file)
        yield row


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "table": write_table}
