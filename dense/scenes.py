"""EmojiScenes: pictures of one to six drawings, with exact masks, boxes, captions and questions, for every dense task.

Written once below DATASET.ROOT, in the layouts of the real data sets: label maps as PNG (ADE20K), instances as JSON
(COCO), captions and conversations as JSON (LLaVA), questions and answers as JSON lines (LLaVA-Bench). A scene depends
on its split and number alone.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY
from datasets.embedded import concept_ids, concepts, load_style
from datasets.embedded.pictures import cannot_write, root_folder
from dense.data import DenseDataset, Split

logger = logging.getLogger(__name__)

CODES = (
    *("1F43C", "1F438", "1F418", "1F427", "1F41E", "1F422", "1F419", "1F40C"),  # animals
    *(
        "1F33B",
        "1F335",
        "1F344",
        "1F337",
        "1F34E",
        "1F347",
        "1F353",
        "1F355",
        "1F354",
        "1F369",
        "2615",
    ),  # to eat, plants
    *("1F3C0", "1F697", "2708", "1F680", "1F6B2", "1F3B8", "1F388", "1F451", "1F3BA", "1F68C", "1F4FA"),  # things
)
"""The 30 classes: concepts that look different from each other and that every style below has, or nearly."""
SEEN = ("noto", "noto-v1", "twemoji", "emojione", "fxemoji")
UNSEEN = ("openmoji", "fluent-flat", "fluent-3d", "streamline")
SIDE = 128  # pixels
MOST = 6  # drawings in a scene
VISIBLE = 0.6  # share of every drawing that others leave uncovered
COUNTS = {"training": 2000, "validation": 500, "validation_unseen": 500}
"""Scenes of each split; the last one in styles by artists that neither training nor the embedded CLIP has seen."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MARKER, RECIPE = "COMPLETE.json", 1  # raised when scenes change, so that those on disk are made again


class Thing(NamedTuple):
    """One drawing of a scene: its class and its visible pixels, (side, side) bool."""

    label: int
    mask: np.ndarray

    @property
    def box(self) -> list[int]:
        """x, y, width and height of the visible pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


class Scene(NamedTuple):
    """A picture (side, side, 3) uint8 and its drawings, those behind first."""

    picture: np.ndarray
    things: list[Thing]


@cache
def class_names() -> list[str]:
    """Names of the classes, in the order of CODES."""
    return [concepts()[concept_ids()[code]].label for code in CODES]


@cache
def drawings(styles: tuple[str, ...]) -> dict[int, list[np.ndarray]]:
    """Premultiplied RGBA drawings (64, 64, 4) uint8 by class, one for each style that has it."""
    found: dict[int, list[np.ndarray]] = {label: [] for label in range(len(CODES))}
    for style in styles:
        ids, art = load_style(style, premultiplied=True)
        row = {concept: number for number, concept in enumerate(ids.tolist())}
        for label, code in enumerate(CODES):
            if (number := row.get(concept_ids()[code])) is not None:
                found[label].append(art[number])
    return found


def draw_scene(split: str, number: int, side: int = SIDE) -> Scene:
    """Scene of a split, as always the same: a background of one colour or two, and drawings of random place and size.

    Args:
        split: one of COUNTS.
        number: from 0.
        side: of the picture in pixels.
    """
    rng = random.Random(f"EmojiScenes/{split}/{number}")
    art = drawings(UNSEEN if split.endswith("unseen") else SEEN)
    picture = _paper(rng, side)
    things: list[tuple[Thing, int]] = []  # with the number of pixels before others covered some
    for _ in range(1 + int(MOST * rng.random())):
        label = int(len(CODES) * rng.random())
        drawing = art[label][int(len(art[label]) * rng.random())]
        for _ in range(10):  # tries to leave enough of the others
            moved = _moved(drawing, rng, side)
            mask = moved[..., 3] > 127
            left = [thing.mask & ~mask for thing, _ in things]
            if mask.any() and all(rest.sum() >= VISIBLE * whole for rest, (_, whole) in zip(left, things)):
                things = [(thing._replace(mask=rest), whole) for rest, (thing, whole) in zip(left, things)]
                things.append((Thing(label, mask), int(mask.sum())))
                picture = moved[..., :3] + (picture * (255 - moved[..., 3:]) + 127) // 255
                break
    return Scene(np.minimum(picture, 255).astype(np.uint8), [thing for thing, _ in things])


def _moved(drawing: np.ndarray, rng: random.Random, side: int) -> np.ndarray:
    """The drawing on an empty canvas (side, side, 4) uint16: 22 to 50 % of its side, turned by at most 15 degrees."""
    scale = side * (0.22 + 0.28 * rng.random()) / len(drawing)
    angle = math.pi / 12 * (2 * rng.random() - 1)
    reach = scale * len(drawing) / 2
    x, y = (reach + (side - 2 * reach) * rng.random() for _ in range(2))
    cos, sin, middle = math.cos(angle) / scale, math.sin(angle) / scale, len(drawing) / 2
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    rounded = tuple(round(value * 4096) / 4096 for value in inverse)
    image = Image.frombytes("RGBa", drawing.shape[1::-1], np.ascontiguousarray(drawing).tobytes())
    moved = image.transform((side, side), Image.Transform.AFFINE, rounded, Image.Resampling.BILINEAR)
    return np.asarray(moved).astype(np.uint16)  # 255 * 255 fits


def _paper(rng: random.Random, side: int) -> np.ndarray:
    """Background (side, side, 3) uint16: a straight gradient between two colours of at least 96 in every channel."""
    first, second = (np.array([96 + int(160 * rng.random()) for _ in range(3)], np.int32) for _ in range(2))
    across, down = (int(65 * rng.random()) - 32 for _ in range(2))
    steps = np.arange(side, dtype=np.int32)
    ramp = across * steps[None, :] + down * steps[:, None]
    ramp = (ramp - ramp.min())[..., None]
    return (first + (second - first) * ramp // max(1, int(ramp.max()))).astype(np.uint16)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a mask (H, W) bool: of 0 and 1 in turn, column by column, 0 first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def caption(things: list[Thing]) -> str:
    """Classes with their counts in the fixed grammar, such as "one frog, two pizza"."""
    counts = Counter(class_names()[thing.label] for thing in things)
    return ", ".join(f"{NUMBERS[count]} {name}" for name, count in sorted(counts.items()))


def questions(things: list[Thing], rng: random.Random) -> list[tuple[str, str, str]]:
    """(category, question, answer) about a scene, in a fixed grammar: what, how many, how many of a class, left of."""
    names = class_names()
    counts = Counter(names[thing.label] for thing in things)
    asked = rng.choice(sorted(counts)) if rng.random() < 0.75 else rng.choice(names)
    found = [
        ("what", "what is in the picture?", ", ".join(sorted(counts))),
        ("number", "how many objects are in the picture?", NUMBERS[len(things)]),
        ("count", f"how many {asked} are in the picture?", NUMBERS[counts[asked]]),
    ]
    middle = {names[one.label]: one.box[0] + one.box[2] / 2 for one in things if counts[names[one.label]] == 1}
    pairs = [(a, b) for a in sorted(middle) for b in sorted(middle) if abs(middle[a] - middle[b]) >= SIDE / 8]
    if pairs:
        one, other = rng.choice(pairs)
        found.append(("left", f"is the {one} left of the {other}?", "yes" if middle[one] < middle[other] else "no"))
    return found


def write_scenes(folder: Path, counts: Mapping[str, int] = COUNTS, side: int = SIDE) -> None:
    """Write the scenes of every split in all layouts, unless a finished folder of this recipe is there.

    The folder appears at once, by renaming; two processes may do this at the same time. One of other counts is taken
    as it is.

    Raises:
        OSError: the folder cannot be written.
    """

    def finished() -> bool:
        try:
            return json.loads((folder / MARKER).read_text(encoding="utf-8"))["recipe"] == RECIPE
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return False

    if finished():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if finished():
                return
            logger.info("Writing %d scenes to %s", sum(counts.values()), folder)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                for split, count in counts.items():
                    _write_split(scratch, split, count, side)
                (scratch / "classes.txt").write_text("".join(f"{name}\n" for name in class_names()), encoding="utf-8")
                marker = {"recipe": RECIPE, "counts": dict(counts), "side": side}
                (scratch / MARKER).write_text(json.dumps(marker), encoding="utf-8")
                scratch.chmod(0o755)
                shutil.rmtree(folder, ignore_errors=True)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as err:
        raise cannot_write(folder, err) from err


def _write_split(folder: Path, split: str, count: int, side: int) -> None:
    pictures, maps = folder / "images" / split, folder / "annotations" / split
    for place in (pictures, maps):
        place.mkdir(parents=True)
    categories = [{"id": 1 + c, "name": name, "supercategory": "object"} for c, name in enumerate(class_names())]
    coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}
    captions: list[dict[str, Any]] = []
    talks: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for number in range(count):
        scene, name = draw_scene(split, number, side), f"{number:05d}.png"
        labels = np.zeros((side, side), np.uint8)
        coco["images"].append({"id": number, "file_name": name, "height": side, "width": side})
        for thing in scene.things:
            labels[thing.mask] = 1 + thing.label
            entry: dict[str, Any] = {
                "id": 1 + len(coco["annotations"]),
                "image_id": number,
                "category_id": 1 + thing.label,
            }
            entry |= {"bbox": thing.box, "area": int(thing.mask.sum()), "iscrowd": 0}
            coco["annotations"].append(entry | {"segmentation": run_lengths(thing.mask)})
        Image.fromarray(scene.picture).save(pictures / name, compress_level=1)
        Image.fromarray(labels).save(maps / name)
        captions.append(_talk(f"{number:05d}", name, "describe the picture.", caption(scene.things)))
        rng = random.Random(f"EmojiScenes/{split}/{number}/questions")
        for category, question, answer in questions(scene.things, rng):
            key = len(asked)
            talks.append(_talk(f"{number:05d}-{category}", name, question, answer))
            asked.append({"question_id": key, "image": name, "text": question, "category": category})
            answers.append({"question_id": key, "text": answer, "category": category})
    for stem, content in (("instances", coco), ("captions", captions), ("conversations", talks)):
        (folder / f"{stem}_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    for stem, lines in (("questions", asked), ("answers", answers)):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{stem}_{split}.jsonl").write_text(text, encoding="utf-8")


def _talk(key: str, image: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": key, "image": image, "conversations": turns}


@DATASET_REGISTRY.register()
class EmojiScenes(DenseDataset):
    """30 classes; training and validation in styles that the embedded CLIP has seen, test in unseen ones.

    Raises:
        OSError: DATASET.ROOT is not set, or cannot be written.
    """

    dataset_dir = "emoji_scenes"
    template = "a picture of a {}."

    def __init__(self, cfg: Any) -> None:
        root = root_folder(cfg.DATASET.ROOT, type(self).__name__)
        folder = root / self.dataset_dir
        write_scenes(folder)
        kinds = ("instances", "captions", "conversations"), ("questions", "answers")
        splits = {
            name: Split(
                folder / "images" / split,
                folder / "annotations" / split,
                *(folder / f"{kind}_{split}.json" for kind in kinds[0]),
                *(folder / f"{kind}_{split}.jsonl" for kind in kinds[1]),
            )
            for name, split in zip(("train", "val", "test"), COUNTS)
        }
        super().__init__(class_names(), splits, root)
