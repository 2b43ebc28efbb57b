"""Output of a benchmark: one JSON line per figure, then a Markdown row, with the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Machine, versions and commit (`+` when tracked files differ from it)."""
    root = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        version = commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        version = "unknown"
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": version,
    }


def processor() -> str:
    """Model name of the processor and its widest vector instructions."""
    info = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def show(benchmark: str, figures: dict[str, float], settings: dict) -> None:
    """Prints every figure as one JSON line, then all of them as a Markdown table with one row."""
    common = {"settings": settings, **environment()}
    for name, value in figures.items():
        print(json.dumps({"benchmark": benchmark, "figure": name, "value": value, **common}))
    cells = {**settings, **figures}
    print("| " + " | ".join(cells) + " |")
    print("|" + "---|" * len(cells))
    print("| " + " | ".join(str(value) for value in cells.values()) + " |", flush=True)
