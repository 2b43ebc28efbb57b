"""Files of an explanation: pictures, numbers, and one page with all of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from dassl.utils import write_text
from dassl.utils.files import atomic_write

PAGE, NUMBERS = "index.html", "numbers.npz"


class Shown(NamedTuple):
    """A figure: name of its file without .png, what it shows, and its PNG."""

    name: str
    caption: str
    png: bytes

    def image(self) -> Image.Image:
        """The figure as a PIL image."""
        return Image.open(io.BytesIO(self.png))

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass
class Section:
    """A part of the page: sentences, a table with its header first, figures, and the numbers behind them."""

    title: str
    text: list[str] = field(default_factory=list)
    table: list[Sequence[str]] = field(default_factory=list)
    figures: list[Shown] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def show(self, name: str, caption: str, figure: Any) -> None:
        """Add a matplotlib Figure."""
        file = io.BytesIO()
        figure.savefig(file, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.08)
        self.figures.append(Shown(name, caption, file.getvalue()))


def page_html(title: str, text: str, sections: Sequence[Section]) -> str:
    """The page, which needs no other file and no network."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html.jinja").render(title=title, text=text, sections=sections)


def write_files(folder: Path, title: str, text: str, sections: Sequence[Section]) -> Path:
    """Write PNGs, numbers.npz and index.html; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {}
    for section in sections:
        numbers |= _arrays(section.numbers)
        for shown in section.figures:
            atomic_write(folder / f"{shown.name}.png", methodcaller("write", shown.png))
    content = io.BytesIO()
    np.savez_compressed(content, **numbers)
    atomic_write(folder / NUMBERS, lambda file: file.write(content.getvalue()))
    write_text(page_html(title, text, sections), folder / PAGE)
    return folder / PAGE


def _arrays(numbers: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in numbers.items()}
