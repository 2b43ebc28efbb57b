"""A contact sheet: pictures in a grid with their classes and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from align_prompt.prediction import Prediction
from dassl.utils import read_image
from dassl.utils.tools import to_rgb

SIDE, GAP, LINE, COLUMNS, MOST = 160, 12, 18, 6, 120
INK, GRAY, BAR = "#1d1f24", "#6b7280", "#2f6fb2"


def contact_sheet(rows: Sequence[Prediction], frames: Sequence[Any] = ()) -> Image.Image:
    """The first 120 pictures, 6 in a row, each with its 3 most probable classes at most.

    Args:
        rows: predictions, with the paths of the pictures.
        frames: the last pictures, which have no path.
    """
    shown = list(rows[:MOST])
    lines = max([1, *(min(3, len(row.top)) for row in shown)])
    columns = max(1, min(COLUMNS, len(shown)))
    height = SIDE + 6 + LINE * (lines + 1) + GAP
    size = (columns * (SIDE + GAP) + GAP, -(-len(shown) // columns) * height + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    without_path = len(rows) - len(frames)
    for place, row in enumerate(shown):
        left, top = GAP + place % columns * (SIDE + GAP), GAP + place // columns * height
        picture = frames[place - without_path] if place >= without_path else None
        _draw(sheet, draw, font, row, picture, left, top)
    return sheet


def _draw(sheet: Image.Image, draw: Any, font: Any, row: Prediction, picture: Any, left: int, top: int) -> None:
    if row.error:
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=GRAY)
        draw.text((left + SIDE / 2, top + SIDE / 2), "not read", fill=GRAY, font=font, anchor="mm")
    else:
        image = read_image(row.source) if picture is None else to_rgb(picture)
        image.thumbnail((SIDE, SIDE))
        if max(image.size) < SIDE:  # small pictures are enlarged
            scale = SIDE / max(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)))
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
    name = row.source.replace("\\", "/").rsplit("/", 1)[-1]
    y = top + SIDE + 6
    draw.text((left, y), _cut(draw, font, name, SIDE), fill=GRAY, font=font)
    for label, probability in row.top[:3]:
        y += LINE
        draw.rectangle((left, y + LINE - 3, left + round(probability * (SIDE - 1)), y + LINE - 2), fill=BAR)
        percent = f"{100 * probability:.1f} %"
        room = SIDE - draw.textlength(percent, font=font) - 6
        draw.text((left, y), _cut(draw, font, label, room), fill=INK, font=font)
        draw.text((left + SIDE, y), percent, fill=INK, font=font, anchor="ra")


def _cut(draw: Any, font: Any, text: str, room: float) -> str:
    """The text, or its beginning with three dots, in at most `room` pixels."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text + "..."
