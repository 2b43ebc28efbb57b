"""Drawings of one style as RGBA images of 64 x 64 pixels. Needs the packages of tools/embedded/requirements.txt."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import resvg_py
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont
from PIL import Image

from datasets.embedded.match import match_by_code, match_by_name

SIZE = 64


def render_svg(svg: str) -> np.ndarray:
    """(64, 64, 4) uint8 straight RGBA of an SVG document; it fills the square in its own proportions."""
    return _square(
        Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, height=SIZE, skip_system_fonts=True))))
    )


def _square(image: Image.Image) -> np.ndarray:
    image = image.convert("RGBA")
    if image.size != (SIZE, SIZE):
        scale = SIZE / max(image.size)
        size = [max(1, round(edge * scale)) for edge in image.size]
        canvas = Image.new("RGBA", (SIZE, SIZE))
        resized = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=None).convert("RGBA")
        canvas.paste(resized, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
        image = canvas
    return np.array(image)


class IconifySet:
    """Icons of an Iconify package: icons.json holds the bodies, chars.json (where there is one) the code points."""

    def __init__(self, folder: Path) -> None:
        self.data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        chars = folder / "chars.json"
        self.chars: dict[str, str] = json.loads(chars.read_text(encoding="utf-8")) if chars.is_file() else {}
        self.icons: dict[str, dict] = self.data["icons"]
        self.aliases: dict[str, dict] = self.data.get("aliases", {})

    def names(self) -> list[str]:
        """Names of the drawings that are not hidden duplicates."""
        return [name for name, icon in self.icons.items() if not icon.get("hidden")]

    def svg(self, name: str) -> str:
        """SVG document of one icon or alias."""
        chain = []
        while name not in self.icons:
            chain.append(self.aliases[name])
            name = self.aliases[name]["parent"]
        icon = self.icons[name]
        left, top = icon.get("left", self.data.get("left", 0)), icon.get("top", self.data.get("top", 0))
        width = icon.get("width", self.data.get("width", 16))
        height = icon.get("height", self.data.get("height", 16))
        body = icon["body"]
        if sum(bool(alias.get("hFlip")) for alias in chain) % 2:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        if sum(bool(alias.get("vFlip")) for alias in chain) % 2:
            body = f'<g transform="translate(0 {2 * top + height}) scale(1 -1)">{body}</g>'
        box = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'{box} color="#000000">{body}</svg>'
        )


def iconify(folder: Path, concepts: list[dict]) -> Iterator[tuple[int, np.ndarray]]:
    icons = IconifySet(folder)
    if icons.chars:
        found = match_by_code(concepts, icons.chars)
    else:
        aliases = {name: alias["parent"] for name, alias in icons.aliases.items() if set(alias) == {"parent"}}
        found = match_by_name(concepts, icons.names(), aliases)
    for index, name in found.items():
        yield index, render_svg(icons.svg(name))


def openmoji(variant: str) -> Callable[[Path, list[dict]], Iterator[tuple[int, np.ndarray]]]:
    def render(folder: Path, concepts: list[dict]) -> Iterator[tuple[int, np.ndarray]]:
        files = {path.stem: str(path) for path in (folder / variant / "svg").glob("*.svg")}
        for index, path in match_by_code(concepts, files).items():
            yield index, render_svg(Path(path).read_text(encoding="utf-8"))

    return render


def images(folder: Path, concepts: list[dict]) -> Iterator[tuple[int, np.ndarray]]:
    files = {path.stem: str(path) for path in (folder / "assets").glob("*.webp")}
    for index, path in match_by_code(concepts, files).items():
        with Image.open(path) as image:
            yield index, _square(image)


def font(folder: Path, concepts: list[dict]) -> Iterator[tuple[int, np.ndarray]]:
    """Glyphs of the monochrome font, black; sequences through the font's own ligatures.

    Many genders and families share a glyph; it is given to the first concept only, the neutral one.
    """
    face = TTFont(folder / "400Regular/NotoEmoji_400Regular.ttf")
    glyphs, characters = face.getGlyphSet(), face.getBestCmap()
    ligatures = _ligatures(face)
    ascent, descent = face["hhea"].ascent, face["hhea"].descent
    used = set()
    for index, concept in enumerate(concepts):
        points = [int(part, 16) for part in concept["code"].split("-")]
        if any(point not in characters for point in points):
            continue
        name = _glyph([characters[point] for point in points], ligatures)
        if name is None or name in used:
            continue
        used.add(name)
        pen = SVGPathPen(glyphs)
        glyphs[name].draw(pen)
        width, height = glyphs[name].width, ascent - descent
        side = max(width, height)
        x, y = (width - side) / 2, -ascent - (side - height) / 2
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x} {y} {side} {side}" width="{side}" height="{side}">'
            f'<path transform="scale(1 -1)" d="{pen.getCommands()}"/></svg>'
        )
        yield index, render_svg(svg)


def _ligatures(face: TTFont) -> dict[tuple[str, ...], str]:
    """Sequence of glyphs (without the variation selector) -> ligature glyph."""
    selector = face.getBestCmap().get(0xFE0F)
    table: dict[tuple[str, ...], str] = {}
    for lookup in face["GSUB"].table.LookupList.Lookup:
        for subtable in lookup.SubTable:
            for first, rules in getattr(subtable, "ligatures", {}).items():
                for rule in rules:
                    sequence = tuple(part for part in (first, *rule.Component) if part != selector)
                    table.setdefault(sequence, rule.LigGlyph)
    return table


def _glyph(sequence: list[str], ligatures: dict[tuple[str, ...], str]) -> str | None:
    return sequence[0] if len(sequence) == 1 else ligatures.get(tuple(sequence))


RENDERERS: dict[str, Callable[[Path, list[dict]], Iterator[tuple[int, np.ndarray]]]] = {
    "noto-mono": font,
    "fluent-3d": images,
    "openmoji": openmoji("color"),
    "openmoji-black": openmoji("black"),
}


def render_style(style: str, folder: Path, concepts: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Concept indices (n,) int64, ascending, and straight RGBA images (n, 64, 64, 4) uint8 of one style."""
    pairs = sorted(RENDERERS.get(style, iconify)(folder, concepts), key=lambda pair: pair[0])
    drawn = [(index, image) for index, image in pairs if image[..., 3].any()]
    return np.array([index for index, _ in drawn], dtype=np.int64), np.stack([image for _, image in drawn])
