"""sweep.jsonl in the folder of all runs: what sweeps started and how it ended, one JSON object per line.

It serves the status table: durations, and the ends of runs that were killed. What is done is never decided by it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE_NAME = "sweep.jsonl"


@dataclass(frozen=True)
class Event:
    """`kind` is start, done, failed, stopped or blocked; `seconds` is wall time of the attempt, None if none ran.

    `sanity-check` is a zero-shot run that was compared, with the problem of its figure as `error`; `no-gate`, without a
    key, is a sweep with --no-gate.
    """

    kind: str
    key: str
    attempt: int = 1
    seconds: float | None = None
    error: str = ""
    time: float = 0.0
    host: str = ""
    pid: int = 0


class EventLog:
    """Appends whole lines, so that several sweeps may write to one file; made by the sweep whose number they have."""

    def __init__(self, output: Path):
        self.path, self.pid = output / FILE_NAME, os.getpid()

    def write(self, kind: str, key: str, attempt: int = 1, seconds: float | None = None, error: str = "") -> None:
        event = Event(kind, key, attempt, seconds, error, round(time.time(), 3), socket.gethostname(), self.pid)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")

    def read(self) -> list[Event]:
        """All events, oldest first; lines that a crash tore, or that are not events, are left out."""
        if not self.path.is_file():
            return []
        names = {field.name for field in fields(Event)}
        events = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                content = json.loads(line)
                event = Event(**{name: value for name, value in content.items() if name in names})
                if isinstance(event.key, str) and (event.seconds is None or event.seconds >= 0):
                    events.append(event)
            except (ValueError, TypeError, AttributeError, RecursionError):
                continue
        return events

    def last(self) -> dict[str, Event]:
        """The last event of every run."""
        return {event.key: event for event in self.read()}
