"""One labelled image, and the splits of a data set with their class names."""

from __future__ import annotations

import itertools
import logging
import operator
import os
import random
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dassl.utils.tools import download_url

__all__ = ["DatasetBase", "Datum", "check_images", "sample_per_class"]

logger = logging.getLogger(__name__)


class Datum:
    """An image file with its label; read-only.

    Args:
        impath: path of the image file.
        label: class number, from 0.
        domain: domain number, from 0.
        classname: name of the class.

    Raises:
        ValueError: impath is not a text, or label or domain is not an integer of at least 0.
    """

    __slots__ = ("_classname", "_domain", "_impath", "_label")

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        if not isinstance(impath, str) or not impath:
            raise ValueError(f"impath is {impath!r}, expected the path of an image")
        for name, value in (("label", label), ("domain", domain)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
                raise ValueError(f'{name} of "{impath}" is {value!r}, expected an integer of at least 0')
        self._impath = impath
        self._label = operator.index(label)
        self._domain = operator.index(domain)
        self._classname = classname

    @property
    def impath(self) -> str:
        """Path of the image file."""
        return self._impath

    @property
    def label(self) -> int:
        """Class number."""
        return self._label

    @property
    def domain(self) -> int:
        """Domain number."""
        return self._domain

    @property
    def classname(self) -> str:
        """Name of the class."""
        return self._classname

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Datum) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Datum({self._impath!r}, label={self._label}, domain={self._domain}, classname={self._classname!r})"

    def _key(self) -> tuple[str, int, int, str]:
        return self._impath, self._label, self._domain, self._classname


class DatasetBase:
    """Training, unlabelled, validation and test items of a data set.

    Class names and their number come from `train_x` alone. A subclass may set `template` (a prompt such as
    "a photo of a {}."), `items_root` (the folder that paths are relative to in fingerprints) and `split_origin` (what
    the fingerprint says of a split that is not the official one), and may have a method `train_loader(cfg, generator)`
    that gives batches itself.

    Raises:
        ValueError: no training items, a label with two names, a gap in the labels, or a validation or test label
            without a class name.
        FileNotFoundError: images are missing; the message has their number and the first few paths.
    """

    dataset_dir: str = ""
    domains: Sequence[str] = ()
    template: str = ""
    items_root: str = ""
    split_origin: str = ""
    test_only: bool = False  # training items are the test items, for want of others, and a training is refused
    long_names: bool = False  # class names are captions, which may be cut to what a text tower reads

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ):
        if not train_x:
            raise ValueError(f"{type(self).__name__} has no training items, so it has no classes")
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        check_images(item.impath for items in (train_x, train_u, val, test) if items for item in items)
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)
        self._check_labels()

    @property
    def train_x(self) -> list[Datum]:
        """Labelled training items."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabelled training items."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation items."""
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        """Test items."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class number to class name."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their numbers."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Largest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Class names by label, and in the order of labels; ValueError if a label has two names."""
        mapping: dict[int, str] = {}
        for item in data_source:
            if mapping.setdefault(item.label, item.classname) != item.classname:
                raise ValueError(f"label {item.label} has two names: {mapping[item.label]!r} and {item.classname!r}")
        mapping = dict(sorted(mapping.items()))
        return mapping, list(mapping.values())

    def _check_labels(self) -> None:
        gaps = (label for label in range(self._num_classes) if label not in self._lab2cname)
        absent = list(itertools.islice(gaps, 10))
        if absent:
            raise ValueError(
                f"{type(self).__name__}: labels must be 0 to {self._num_classes - 1} without a gap, "
                f"but no training item has label {', '.join(map(str, absent))}"
            )
        for split, items in (("validation", self._val), ("test", self._test)):
            for item in items or ():
                if self._lab2cname.get(item.label) != item.classname:
                    raise ValueError(
                        f'{type(self).__name__}: {split} item "{item.impath}" has label {item.label} '
                        f"({item.classname!r}), but in training this label is {self._lab2cname.get(item.label)!r}"
                    )

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Check domain names against `domains`; ValueError if there are none or one is unknown."""
        if not source_domains:
            raise ValueError("source_domains (list) is empty")
        if not target_domains:
            raise ValueError("target_domains (list) is empty")
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """ValueError if one of the names is not in `domains`."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"Input domain must belong to {list(self.domains)}, but got [{domain}]")

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive to `dst` and unpack it beside it.

        Raises:
            OSError: the download failed.
            ValueError: `dst` does not end in .zip, .tar, .tar.gz or .tgz.
        """
        path = Path(dst)
        path.parent.mkdir(parents=True, exist_ok=True)
        if from_gdrive:
            import gdown

            if gdown.download(url, str(path), quiet=False) is None:
                raise OSError(f'cannot download {url} to "{path}"')
        else:
            download_url(url, path)
        logger.info("Extracting file ...")
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(path.parent)
        elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
            with tarfile.open(path) as archive:
                archive.extractall(path.parent, filter="data")
        else:
            raise ValueError(f'"{path}" is no .zip, .tar, .tar.gz or .tgz file')
        logger.info("File extracted to %s", path.parent)

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False, rng: Any = random
    ) -> list[Any]:
        """Draw `num_shots` items per class from each list.

        Classes are taken in the order in which they first appear. A class with fewer items is taken whole, in order,
        without a draw; with `repeat` it is drawn with replacement instead.

        Args:
            data_sources: lists of items.
            num_shots: items per class; below 1 the lists are returned as they are.
            rng: random.Random, or the module `random` for its global generator.

        Returns:
            The drawn list if one list was given, else the list of drawn lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else list(data_sources)
        logger.info("Creating a %d-shot dataset", num_shots)
        output = []
        for data_source in data_sources:
            output.append(sample_per_class(data_source, num_shots, rng, repeat))
        return output[0] if len(output) == 1 else output

    @staticmethod
    def split_dataset_by_label(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Items by label, labels in the order of their first item."""
        output: dict[int, list[Datum]] = {}
        for item in data_source:
            output.setdefault(item.label, []).append(item)
        return output

    @staticmethod
    def split_dataset_by_domain(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Items by domain, domains in the order of their first item."""
        output: dict[int, list[Datum]] = {}
        for item in data_source:
            output.setdefault(item.domain, []).append(item)
        return output


def sample_per_class(items: Iterable[Datum], num_shots: int, rng: Any = random, repeat: bool = False) -> list[Datum]:
    """`num_shots` items of each class, as `DatasetBase.generate_fewshot_dataset` draws them from one list."""
    drawn: list[Datum] = []
    for members in DatasetBase.split_dataset_by_label(items).values():
        if len(members) >= num_shots:
            drawn.extend(rng.sample(members, num_shots))
        elif repeat:
            drawn.extend(rng.choices(members, k=num_shots))
        else:
            drawn.extend(members)
    return drawn


def check_images(paths: Iterable[str]) -> None:
    """Check that every path is a file.

    Raises:
        FileNotFoundError: some are not; the message has their number and the first five.
    """
    missing = [path for path in dict.fromkeys(paths) if not os.path.isfile(path)]
    if missing:
        shown = "\n".join(f"  {path}" for path in missing[:5])
        more = f"\n  ... and {len(missing) - 5} more" if len(missing) > 5 else ""
        count = "1 image is" if len(missing) == 1 else f"{len(missing)} images are"
        raise FileNotFoundError(f"{count} missing:\n{shown}{more}")
