"""Images with captions in a folder, a table or shards: DATASET.NAME image_text, see docs/pretraining.md."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, build_dataset
from dassl.data.transforms import build_transform
from dassl.utils.tools import read_image
from datasets.custom.options import IMAGE_SUFFIXES
from datasets.image_text.shards import ShardLoader, count_pairs, find_shards

logger = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv")
# What people call the columns of tables of captions; the first is open_clip's.
_IMAGE_COLUMNS = ("filepath", "path", "file_name", "filename", "image", "image_name")
_TEXT_COLUMNS = ("title", "caption", "text", "comment")


class Pair(NamedTuple):
    """An image file and the captions that are true of it."""

    path: str
    captions: tuple[str, ...]


class CaptionedImages(Dataset):
    """Images with one of their captions, drawn anew in every epoch.

    Items are {img, text, impath, index}. The arguments are those of `dassl.data.DatasetWrapper`, in whose place this
    stands in a training loader.

    Raises:
        ValueError: (when an item is read) the image does not decode.
        FileNotFoundError: the image is not there.
    """

    def __init__(self, cfg: Any, data_source: Sequence[Pair], transform: Any, is_train: bool = True) -> None:
        self.data_source, self.transform = data_source, transform

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.data_source[index]
        captions = pair.captions
        text = captions[int(torch.randint(len(captions), ()))] if len(captions) > 1 else captions[0]
        return {"img": self.transform(read_image(pair.path)), "text": text, "impath": pair.path, "index": index}


def pair_loader(cfg: Any, pairs: Sequence[Pair]) -> Any:
    """Training loader over pairs: every pair once per epoch, in an order and with captions that the seed decides."""
    return build_data_loader(
        cfg,
        sampler_type="RandomSampler",
        data_source=list(pairs),  # type: ignore[arg-type]
        batch_size=cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        tfm=build_transform(cfg, is_train=True),
        is_train=True,
        dataset_wrapper=CaptionedImages,
    )


def folder_pairs(folder: Path) -> list[Pair]:
    """Pairs of a folder: every image below it with the captions in the .txt file of the same name, one a line.

    Images without captions are left out, with a warning. No folder is entered twice.

    Raises:
        ValueError: there is no image with captions.
        OSError: a folder below it cannot be read.
    """
    pairs, bare = [], []
    seen = set()
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        texts = {name[:-4]: name for name in sorted(files) if name.lower().endswith(".txt")}  # .TXT if there is no .txt
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            path = os.path.join(place, name)
            captions = _lines(os.path.join(place, texts[stem])) if stem in texts else ()
            if captions:
                pairs.append(Pair(path, captions))
            else:
                bare.append(path)
    if not pairs:
        raise ValueError(f'"{folder}" has {len(bare)} images but none with a text file of the same name (a.jpg, a.txt)')
    if bare:
        total = len(bare) + len(pairs)
        logger.warning("%d of %d images have no caption and are left out, such as %s", len(bare), total, bare[0])
    return pairs


def _raise(err: OSError) -> None:
    raise err


def _lines(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return tuple(line.strip() for line in file if line.strip())
    except UnicodeDecodeError as err:
        raise ValueError(f'"{path}" is not UTF-8 text: {err}') from err


def table_pairs(path: Path, image: str = "", text: str = "", separator: str = "") -> list[Pair]:
    """Pairs of a table with a header; rows of the same image are captions of it.

    Args:
        path: .csv or .tsv; paths of images are relative to its folder, or absolute.
        image: column of the paths; "" for one of the usual names.
        text: column of the captions.
        separator: between columns; "" for the one that the header shows, "\\t" may be written as backslash and t.

    Raises:
        ValueError: the table is damaged or empty, or lacks a column; the message says which there are.
        FileNotFoundError: images are missing.
    """
    found: dict[str, list[str]] = {}
    for where, name, caption in _table_rows(path, image, text, separator):
        if not name.strip() or not caption.strip():
            raise ValueError(f"{where} has no {'caption' if name.strip() else 'path of an image'}")
        found.setdefault(os.path.join(path.parent, name.strip()), []).append(caption.strip())
    if not found:
        raise ValueError(f'"{path}" has no rows')
    missing = [name for name in found if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(found)} images of "{path}" are missing, such as "{missing[0]}"'
        )
    return [Pair(name, tuple(captions)) for name, captions in found.items()]


def _table_rows(path: Path, image: str, text: str, separator: str) -> Iterator[tuple[str, str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = separator.replace("\\t", "\t") or max("\t,;|", key=header.count)
            if len(delimiter) != 1:
                raise ValueError(f"DATASET.PAIRS.SEPARATOR is {separator!r}, expected one character, or \\t")
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = list(reader.fieldnames or ())
            image = _column(image, _IMAGE_COLUMNS, names, "IMAGE_COLUMN", path)
            text = _column(text, _TEXT_COLUMNS, names, "TEXT_COLUMN", path)
            for record in reader:
                where = f'line {reader.line_num} of "{path}"'
                if record[image] is None or record[text] is None or None in record:
                    raise ValueError(f"{where} does not have the {len(names)} fields of the header")
                yield where, record[image], record[text]
    except (csv.Error, UnicodeDecodeError) as err:
        raise ValueError(f'"{path}" is not a table of text: {err}') from err


def _column(chosen: str, usual: Sequence[str], names: Sequence[str], key: str, path: Path) -> str:
    for name in (chosen,) if chosen else usual:
        if name in names:
            return name
    wanted = repr(chosen) if chosen else " or ".join(map(repr, usual))
    raise ValueError(f'"{path}" has no column {wanted}, found {", ".join(names) or "none"}; set DATASET.PAIRS.{key}')


@DATASET_REGISTRY.register(name="image_text")
class ImageText(DatasetBase):
    """Pairs for contrastive training from DATASET.PAIRS.SOURCE; relative paths start at DATASET.ROOT.

    DATASET.PAIRS.EVALUATE names the data set that measures the model during training and at its end: its classes and
    validation and test images are those of this data set. Without it there are none.

    Raises:
        FileNotFoundError: no such folder, table, shard or image.
        ValueError: nothing to read, or something that is not usable; a test without EVALUATE.
    """

    def __init__(self, cfg: Any) -> None:
        options = cfg.DATASET.PAIRS
        self.source = os.path.join(cfg.DATASET.ROOT, os.path.expanduser(options.SOURCE))
        self.pairs: list[Pair] | None = None
        self.shards = [] if os.path.isdir(self.source) and not _has_shards(self.source) else self._shards()
        if not self.shards:
            self.pairs = self._read(options)
            captions = sum(len(pair.captions) for pair in self.pairs)
            logger.info("%d images with %d captions from %s", len(self.pairs), captions, self.source)
        if options.EVALUATE:
            self._judge(cfg, options.EVALUATE)
        elif cfg.TEST.NO_TEST:
            self._train_x, self._train_u, self._val, self._test = [], None, None, None
            self._num_classes, self._lab2cname, self._classnames = 0, {}, []
        else:
            raise ValueError(
                "image_text has no classes and no test images: DATASET.PAIRS.EVALUATE names the data set that measures "
                "the model, or set TEST.NO_TEST True"
            )

    def _shards(self) -> list[str]:
        return [] if Path(self.source).suffix.lower() in _TABLES else find_shards(self.source)

    def _read(self, options: Any) -> list[Pair]:
        path = Path(self.source)
        if path.is_dir():
            return folder_pairs(path)
        if not path.is_file():
            raise FileNotFoundError(f'there is no table "{path}" (DATASET.PAIRS.SOURCE below DATASET.ROOT)')
        return table_pairs(path, options.IMAGE_COLUMN, options.TEXT_COLUMN, options.SEPARATOR)

    def _judge(self, cfg: Any, name: str) -> None:
        if name == "image_text":
            raise ValueError("DATASET.PAIRS.EVALUATE is image_text itself, expected a data set with test images")
        other = cfg.clone()
        other.defrost()
        other.DATASET.NAME = name
        judge = build_dataset(other)
        self.template, self.items_root, self.split_origin = judge.template, judge.items_root, judge.split_origin
        self.long_names = judge.long_names
        super().__init__(train_x=judge.train_x, val=judge.val, test=judge.test)

    def train_loader(self, cfg: Any, generator: torch.Generator) -> Any:
        """Loader of batches {img (B, 3, H, W), text: B captions, ...}."""
        if self.pairs is not None:
            return pair_loader(cfg, self.pairs)
        total = cfg.DATASET.PAIRS.EPOCH_PAIRS or count_pairs(self.shards)
        return ShardLoader(cfg, self.shards, build_transform(cfg, is_train=True), total)


def _has_shards(folder: str) -> bool:
    return any(name.endswith(".tar") for name in os.listdir(folder))
