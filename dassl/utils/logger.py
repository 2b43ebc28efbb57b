"""One log file per output folder, fed by what is printed and by Python's logging."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from . import distributed

__all__ = ["Logger", "setup_logger"]


class Logger(io.TextIOBase):
    """A stream that writes to the console and to a file, line by line so that a killed run keeps its log.

    Args:
        fpath: the file, or None for the console alone. An existing file is continued after a separator line.
        console: the stream to keep writing to; the present sys.stdout by default.
    """

    def __init__(self, fpath: str | Path | None = None, console: TextIO | None = None):
        super().__init__()
        self.console: TextIO = sys.stdout if console is None else console
        self.file: TextIO | None = None
        if fpath is not None:
            path = Path(fpath)
            path.parent.mkdir(parents=True, exist_ok=True)
            continued = path.exists() and path.stat().st_size > 0
            self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the run
            if continued:
                self.file.write(f"\n{'=' * 30} continued {time.strftime('%Y-%m-%d %H:%M:%S')} {'=' * 30}\n")

    def write(self, msg: str) -> int:
        """Write to both places."""
        self.console.write(msg)
        if self.file is not None:
            self.file.write(msg)
        return len(msg)

    def flush(self) -> None:
        """Flush both places."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def isatty(self) -> bool:
        """True if the console is a terminal."""
        return self.console.isatty()

    def close(self) -> None:
        """Close the file and give sys.stdout back; the console stays open."""
        if sys.stdout is self:
            sys.stdout = self.console
        if self.file is not None:
            self.file.close()
            self.file = None


class _StdoutHandler(logging.StreamHandler):
    """Writes to whatever sys.stdout is at that moment, so to the log file too. Failing to write is not hidden."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        return sys.stdout

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # logging calls this inside its except block


class _Formatter(logging.Formatter):
    """Plain text for information, so that log parsers of the Dassl family read it; a level name for the rest."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname} {record.name}: {text}"


def setup_logger(output: str | Path | None = None) -> Logger | None:
    """Send everything printed and logged (INFO and above) to the console and to a log file.

    The file is `output` itself if it ends in .txt or .log, else `output`/log.txt. A later run into the same folder
    appends to the same file after a separator line: scripts that collect results read log.txt and nothing else.
    With None only logging to the console is set up. In a run of several processes only the first one writes; the others
    show warnings.

    Returns:
        The stream now in the place of sys.stdout (close() undoes it), or None if there is no log file.
    """
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _StdoutHandler)]:
        root.removeHandler(handler)
    handler = _StdoutHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main_process() else logging.WARNING)
    if output is None or not distributed.is_main_process():
        return None
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path = path / "log.txt"
    logger = Logger(path)
    sys.stdout = logger
    return logger
