"""Image-text retrieval: pictures, each with its own captions. Flickr30k, COCO and the embedded artwork."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import read_json
from datasets.embedded import STYLES, UNSEEN_STYLES, benchmark, concept_ids, concepts, style_concepts
from datasets.embedded.pictures import picture_path, root_folder, write_style
from datasets.image_text.pairs import Pair, pair_loader

logger = logging.getLogger(__name__)

CAPTIONS = 5  # of an image that are searched, the first ones, as in published figures; some images of COCO have more


class RetrievalDataset(DatasetBase):
    """Pictures to find by their captions, and the other way round; evaluated with TEST.EVALUATOR Retrieval.

    The classes are the captions, those of a picture next to each other; the label of a test picture is the number of
    its first caption. Captions are read as they are (INPUT.TEMPLATE may put words around them). With training pairs the
    data set also serves for contrastive training.

    Args:
        cfg: the config.
        test: pictures that are searched.
        train: pairs for training; those without caption are left out, with a warning.

    Raises:
        ValueError: no pictures, a picture without caption, an option of few-shot learning, or another evaluator.
        FileNotFoundError: pictures are missing.
    """

    template = "{}"
    long_names = True
    evaluator = "Retrieval"

    def __init__(self, cfg: Any, test: Sequence[Pair], train: Sequence[Pair] = ()) -> None:
        name = type(self).__name__
        if cfg.TEST.EVALUATOR != "Retrieval":
            raise ValueError(f"TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}, but {name} is measured by Retrieval")
        if cfg.DATASET.NUM_SHOTS > 0 or cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(f"{name} has no classes: DATASET.NUM_SHOTS and DATASET.SUBSAMPLE_CLASSES do not apply")
        pairs: list[Datum] = []
        items: list[Datum] = []
        for pair in test:
            captions = _told(pair)[:CAPTIONS]
            if not captions:
                raise ValueError(f'"{pair.path}" has no caption')
            items.append(Datum(pair.path, len(pairs), classname=captions[0]))
            pairs += [Datum(pair.path, len(pairs) + k, classname=text) for k, text in enumerate(captions)]
        told = [Pair(pair.path, captions) for pair in train if (captions := _told(pair))]
        if len(told) < len(train):
            logger.warning("%d of %d training pictures have no caption, left out", len(train) - len(told), len(train))
        if told:
            self.train_loader = lambda cfg, generator: pair_loader(cfg, told)
        super().__init__(train_x=pairs, test=items)


def _told(pair: Pair) -> tuple[str, ...]:
    """The captions of a pair that say something."""
    return tuple(caption for caption in pair.captions if caption.strip())


def karpathy_splits(path: Path, folders: Sequence[Path]) -> dict[str, list[Pair]]:
    """Pairs by split (train, val, test, restval) of a file of Karpathy and Fei-Fei's, such as dataset_coco.json.

    Args:
        path: {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}.
        folders: the images are in the first of these that has them.

    Raises:
        ValueError: another content.
    """
    splits: dict[str, list[Pair]] = {}
    try:
        for entry in read_json(path)["images"]:
            name = os.path.join(entry.get("filepath", ""), entry["filename"])
            captions = tuple(_text(sentence["raw"]) for sentence in entry["sentences"])
            splits.setdefault(entry["split"], []).append(Pair(_place(name, folders), captions))
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f'"{path}" is not a file of splits and sentences: {err!r}') from err
    return splits


def coco_pairs(path: Path, folders: Sequence[Path]) -> list[Pair]:
    """Pairs of COCO's captions_*.json, images and captions in the order of the file.

    Args:
        path: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.
        folders: the images are in the first of these that has them.

    Raises:
        ValueError: another content, or an annotation of an image that is not there.
    """
    try:
        content = read_json(path)
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            captions[entry["image_id"]].append(_text(entry["caption"]))
        names = {image["id"]: image["file_name"] for image in content["images"]}
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f'"{path}" is not a file of captions as COCO has them: {err!r}') from err
    return [Pair(_place(names[number], folders), tuple(texts)) for number, texts in captions.items() if texts]


def _text(value: Any) -> str:
    return " ".join(value.split())


def _place(name: str, folders: Iterable[Path]) -> str:
    """Path of an image below one of the folders; the first one's when none has it, for the message about what lacks."""
    parts = Path(name).parts
    if os.path.isabs(name) or ".." in parts:
        raise ValueError(f"the image {name!r} is not below the data set's folder")
    places = [os.path.join(folder, name) for folder in folders]
    return next((place for place in places if os.path.isfile(place)), places[0])


def _first(folder: Path, names: Sequence[str], what: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f'"{folder}" has no {what}: expected {" or ".join(names)}')


@DATASET_REGISTRY.register()
class Flickr30k(RetrievalDataset):
    """Flickr30k with Karpathy's split: 1,000 test pictures with 5 captions; training pairs of its training split.

    <ROOT>/flickr30k/dataset_flickr30k.json and flickr30k-images/ (or flickr30k_images/, images/).
    """

    def __init__(self, cfg: Any) -> None:
        folder = Path(cfg.DATASET.ROOT) / "flickr30k"
        self.items_root = str(folder)
        places = [folder / name for name in ("flickr30k-images", "flickr30k_images", "images", "")]
        file = _first(
            folder, ("dataset_flickr30k.json", "annotations/dataset_flickr30k.json"), "file of Karpathy's split"
        )
        splits = karpathy_splits(file, places)
        super().__init__(cfg, _split(splits, cfg.DATASET.PAIRS.TEST_SPLIT, file), splits.get("train", []))


@DATASET_REGISTRY.register()
class COCOCaptions(RetrievalDataset):
    """COCO with Karpathy's split (5,000 test pictures, 5 captions each), or with COCO's own captions_val2017.json.

    <ROOT>/coco/dataset_coco.json with val2014/ and train2014/, else <ROOT>/coco/annotations/captions_val2017.json with
    val2017/ (and captions_train2017.json with train2017/ for training). <ROOT>/mscoco works too.
    """

    def __init__(self, cfg: Any) -> None:
        folder = next((path for name in ("coco", "mscoco") if (path := Path(cfg.DATASET.ROOT) / name).is_dir()), None)
        if folder is None:
            raise FileNotFoundError(f'"{cfg.DATASET.ROOT}" has no folder coco or mscoco')
        self.items_root = str(folder)
        split = cfg.DATASET.PAIRS.TEST_SPLIT
        own = ("annotations/captions_val2017.json", "annotations/captions_val2014.json")
        file = _first(folder, ("dataset_coco.json", "annotations/dataset_coco.json", *own), "file of captions")
        if file.name == "dataset_coco.json":
            splits = karpathy_splits(file, [folder, folder / "images"])
            super().__init__(cfg, _split(splits, split, file), splits.get("train", []) + splits.get("restval", []))
            return
        if split != "test":
            raise ValueError(f"{file} is one split alone, DATASET.PAIRS.TEST_SPLIT {split} needs dataset_coco.json")
        self.split_origin = file.stem
        year = file.stem.removeprefix("captions_val")
        train = file.with_name(f"captions_train{year}.json")
        pairs = coco_pairs(train, [folder / f"train{year}", folder]) if train.is_file() else []
        super().__init__(cfg, coco_pairs(file, [folder / f"val{year}", folder]), pairs)


def _split(splits: Mapping[str, list[Pair]], name: str, file: Path) -> list[Pair]:
    if name not in splits:
        raise ValueError(f'"{file}" has no split {name}, found {", ".join(sorted(splits))}')
    return splits[name]


@DATASET_REGISTRY.register()
class EmojiRetrieval(RetrievalDataset):
    """Embedded artwork of one style (DATASET.TARGET_DOMAINS), which pre-training never saw: concepts of the test split.

    A picture has up to five captions, made from name and keywords of its concept. Some are less than certain: keywords
    are shared ("flower" is one of ten concepts).
    """

    domains = STYLES
    captions = ("a picture of a {name}.", "{name}", "{name}, {first}", "a drawing of {first}, {second}", "{rest}")

    def __init__(self, cfg: Any) -> None:
        styles = tuple(cfg.DATASET.TARGET_DOMAINS) or UNSEEN_STYLES[:1]
        self.check_input_domains(styles, styles)
        if len(styles) != 1:
            raise ValueError(
                f"EmojiRetrieval shows one style at a time, DATASET.TARGET_DOMAINS has {', '.join(styles)}"
            )
        root = root_folder(cfg.DATASET.ROOT, type(self).__name__)
        folder, self.items_root = root / "emoji", str(root)
        write_style(folder, styles[0])
        drawn, ids, part = set(style_concepts(styles[0])), concept_ids(), benchmark()["split"]
        test = [
            Pair(str(picture_path(folder, styles[0], concept.code)), self.describe(concept.label, concept.tags))
            for concept in concepts()
            if part.get(concept.code) == cfg.DATASET.PAIRS.TEST_SPLIT and ids[concept.code] in drawn
        ]
        super().__init__(cfg, test)

    @classmethod
    def describe(cls, name: str, tags: Sequence[str]) -> tuple[str, ...]:
        """Captions of a concept: as many as its keywords allow, at least the first two."""
        words = [tag for tag in tags if tag != name and len(tag) > 1]
        count = 2 if not words else 3 if len(words) == 1 else 4 if len(words) == 2 else 5
        parts = {"name": name, "first": words[0] if words else "", "second": words[1] if len(words) > 1 else ""}
        return tuple(text.format(**parts, rest=", ".join(words)) for text in cls.captions[:count])
