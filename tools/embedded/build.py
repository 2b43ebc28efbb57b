"""Rebuild the packed artwork from the published packages.

    python -m tools.embedded.build            # fetch, render, pack into datasets/embedded/
    python -m tools.embedded.build --check    # the same into memory; compare byte for byte
    python -m tools.embedded.build --icons    # icons with names, into the user's cache: optional pairs
    python -m tools.embedded.build --sheet docs/images/emoji_styles.png    # sample pictures; fetches nothing

Needs `npm` and the packages of tools/embedded/requirements.txt.
"""

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.embedded import HERE, STYLES, concept_ids, load_style, pack
from datasets.embedded.icons import choose, concept_of, icons_path, save_icons
from datasets.embedded.match import read_concepts
from datasets.embedded.pictures import composite
from tools.embedded import sources as table

INTEGRITY = HERE / "integrity.json"
# apple, dog, slightly smiling face, cherry blossom, camera, trumpet, dress, pill, house, fire engine, cat, guitar
SHEET = ("1F34E", "1F436", "1F642", "1F338", "1F4F7", "1F3BA", "1F457", "1F48A", "1F3E0", "1F692", "1F431", "1F3B8")


def fetch(package: table.Package, folder: Path) -> Path:
    """Download a package with `npm pack` into `folder` (kept if it is there), verify it and unpack it.

    Returns:
        The folder with the package's files.

    Raises:
        RuntimeError: npm failed.
        ValueError: the archive is not the one this project was built from.
    """
    archive = folder / package.archive
    if not archive.is_file():
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError("npm is not installed; it fetches the packages (https://nodejs.org)") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
    expected = json.loads(INTEGRITY.read_text(encoding="utf-8"))[f"{package.name}@{package.version}"]
    found = integrity(archive)
    if found != expected:
        raise ValueError(f"{archive} has integrity {found}, expected {expected}; delete it and try again")
    target = folder / archive.stem
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as scratch, tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
            (Path(scratch) / "package").rename(target)
    return target


def integrity(archive: Path) -> str:
    """Subresource integrity of a file, as npm writes it: sha512-<base64>."""
    return "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()


def concepts_text(concepts: list[dict]) -> str:
    """Contents of concepts.json: one line [code, label, tags, group, subgroup] per concept."""
    keys = ("code", "label", "tags", "group", "subgroup")
    lines = [json.dumps([concept[key] for key in keys], ensure_ascii=False) for concept in concepts]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def build(folder: Path, styles: tuple[str, ...] = STYLES) -> dict[Path, bytes]:
    """Fetch and render; path -> contents of every file the command writes. Packages are kept in `folder`."""
    from tools.embedded.render import render_style

    concepts = read_concepts(fetch(table.LABELS, folder))
    files = {HERE / "concepts.json": concepts_text(concepts).encode()}
    for style in styles:
        ids, images = render_style(style, fetch(table.STYLES[style], folder), concepts)
        files[HERE / "styles" / f"{style}.xz"] = pack.encode(ids, images)
        print(f"{style:15s} {len(ids):5d} images, {len(files[HERE / 'styles' / f'{style}.xz']):9,d} bytes", flush=True)
    return files


def build_icons(folder: Path) -> Path:
    """Fetch and render the icon sets and pack them into the user's cache; returns the file."""
    from tools.embedded.render import IconifySet, render_svg

    rows, images = [], []
    for set_name, package in table.ICON_SETS.items():
        icons = IconifySet(fetch(package, folder))
        for name, words in choose(set_name, icons.names()):
            image = render_svg(icons.svg(name))
            if image[..., 3].any():
                rows.append([set_name, words, concept_of(words)])
                images.append(image)
        print(f"{set_name:17s} {sum(row[0] == set_name for row in rows):5d} icons", flush=True)
    save_icons(icons_path(), rows, np.stack(images))
    return icons_path()


def write_sheet(path: Path, codes: tuple[str, ...] = SHEET) -> None:
    """Write a sheet of evaluation pictures: one row per style, one column per concept, blank where a style lacks it."""
    edge = pack.SIZE + 2
    sheet = Image.new("RGB", (edge * len(codes), edge * len(STYLES)), "white")
    for row, style in enumerate(STYLES):
        ids, images = load_style(style, premultiplied=True)
        drawn = dict(zip(ids.tolist(), images))
        for column, code in enumerate(codes):
            if concept_ids()[code] in drawn:
                picture = Image.fromarray(composite(drawn[concept_ids()[code]], code, style))
                sheet.paste(picture, (column * edge + 1, row * edge + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status: 1 if --check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.build", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the files of the repository")
    parser.add_argument("--packages", type=Path, help="folder to keep the packages in (default: a temporary one)")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), choices=STYLES, metavar="STYLE", help="only these")
    parser.add_argument("--icons", action="store_true", help="build the icons instead, into the user's cache")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write sample pictures of every style instead")
    args = parser.parse_args(argv)
    if args.sheet is not None:
        write_sheet(args.sheet)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.packages is None else args.packages
        folder.mkdir(parents=True, exist_ok=True)
        if args.icons:
            print(f"written to {build_icons(folder)}")
            return 0
        files = build(folder, tuple(args.styles))
    if not args.check:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return 0
    different = [path for path, data in files.items() if not path.is_file() or path.read_bytes() != data]
    for path in different:
        print(f"differs: {path}")
    print("no difference" if not different else f"{len(different)} of {len(files)} files differ")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
