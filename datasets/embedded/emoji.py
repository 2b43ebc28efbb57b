"""Emoji in the styles of independent artists: a set of 69 coarse classes and seven sets of fine classes.

See docs/embedded.md. Styles are the domains. Pictures are written below DATASET.ROOT when a data set is first built.
"""

import logging
import statistics
from collections import Counter
from collections.abc import Sequence

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from datasets.embedded import STYLES, UNSEEN_STYLES, benchmark, concept_ids, style_concepts
from datasets.embedded.pictures import picture_path, root_folder, write_style
from datasets.few_shot import draw_shots, subsample_classes

logger = logging.getLogger(__name__)


class EmojiDataset(DatasetBase):
    """Classes of concepts; every item is one concept in one style.

    A class is named in benchmark.json; labels follow the alphabet, so that the base and the new half are alike.
    DATASET.SOURCE_DOMAINS and TARGET_DOMAINS choose the styles of training and test. A class that has no training
    picture in the source styles is left out, with a warning.

    Raises:
        ValueError: an unknown style.
        OSError: DATASET.ROOT is not set, or cannot be written.
    """

    dataset_dir = "emoji"
    domains = STYLES
    template = "a picture of a {}."
    source_styles: tuple[str, ...] = ()
    target_styles: tuple[str, ...] = ()

    def __init__(self, cfg) -> None:
        name = type(self).__name__
        root = root_folder(cfg.DATASET.ROOT, name)
        self.items_root = str(root)
        self.folder = root / self.dataset_dir
        source = tuple(cfg.DATASET.SOURCE_DOMAINS) or self.source_styles
        target = tuple(cfg.DATASET.TARGET_DOMAINS) or self.target_styles
        self.check_input_domains(source, target)
        self.classes = dict(sorted(self.read_classes().items()))
        found = {item.classname for style in source for item in self.style_items(style, self.train_codes())}
        missing = [classname for classname in self.classes if classname not in found]
        if missing:
            logger.warning(
                "%s: %d of %d classes have no training picture in %s and are left out: %s",
                *(name, len(missing), len(self.classes), ", ".join(source), ", ".join(missing)),
            )
        self.classes = {classname: codes for classname, codes in self.classes.items() if classname in found}
        train, val, test = self.splits(source, target)
        self.warn_of_few(train, cfg.DATASET.NUM_SHOTS)
        train, val = draw_shots(cfg, self, train, val)
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def warn_of_few(self, train: list[Datum], shots: int) -> None:
        """Say how many classes have fewer training pictures than shots; they are used whole, nothing is repeated."""
        counts = Counter(item.label for item in train)
        few = sum(count < shots for count in counts.values())
        if few:
            logger.warning(
                "%s: %d of %d classes have fewer than %d training pictures and use all they have (median %d)",
                *(type(self).__name__, few, len(counts), shots, statistics.median(counts.values())),
            )

    def read_classes(self) -> dict[str, list[str]]:
        """Class name -> hex codes of its concepts."""
        return benchmark()["fine"][type(self).__name__]

    def train_codes(self) -> set[str] | None:
        """Hex codes of the concepts that training may show; None for all."""
        return None

    def splits(self, source: Sequence[str], target: Sequence[str]) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Items for training, validation and test."""
        raise NotImplementedError

    def style_items(self, style: str, codes: set[str] | None = None) -> list[Datum]:
        """Items of one style, seen in pre-training or not: classes in order, concepts in the order of their class.

        Args:
            style: one of `domains`.
            codes: hex codes to keep; None keeps all.
        """
        write_style(self.folder, style)
        drawn, ids, domain = set(style_concepts(style)), concept_ids(), self.domains.index(style)
        return [
            Datum(str(picture_path(self.folder, style, code)), label, domain, name)
            for label, (name, members) in enumerate(self.classes.items())
            for code in members
            if ids[code] in drawn and (codes is None or code in codes)
        ]


@DATASET_REGISTRY.register()
class EmojiGroups(EmojiDataset):
    """69 coarse classes split by concept: the concepts of validation and test are not in training.

    Training and validation are in the source styles, test is in the target styles; both default to the six styles that
    pre-training never saw.
    """

    source_styles = UNSEEN_STYLES
    target_styles = UNSEEN_STYLES

    def read_classes(self) -> dict[str, list[str]]:
        return benchmark()["groups"]

    def train_codes(self) -> set[str]:
        return self.codes("train")

    def splits(self, source: Sequence[str], target: Sequence[str]) -> tuple[list[Datum], list[Datum], list[Datum]]:
        train = [item for style in source for item in self.style_items(style, self.train_codes())]
        val = [item for style in source for item in self.style_items(style, self.codes("val"))]
        test = [item for style in target for item in self.style_items(style, self.codes("test"))]
        return train, val, test

    @staticmethod
    def codes(split: str) -> set[str]:
        """Hex codes of the concepts of a split: train, val or test."""
        return {code for code, part in benchmark()["split"].items() if part == split}


class FineEmojiDataset(EmojiDataset):
    """Fine classes split by style; the same concepts in each split.

    Validation is in `val_styles`, less those that training or test use; without a style left there is no validation.
    """

    source_styles = ("openmoji", "fluent-flat", "streamline")
    val_styles = ("openmoji-black",)
    target_styles = ("fluent-3d", "fluent-hc")

    def splits(self, source: Sequence[str], target: Sequence[str]) -> tuple[list[Datum], list[Datum], list[Datum]]:
        free = [style for style in self.val_styles if style not in (*source, *target)]
        train, val, test = (
            [item for style in styles for item in self.style_items(style)] for styles in (source, free, target)
        )
        return train, val, test


@DATASET_REGISTRY.register()
class EmojiAnimals(FineEmojiDataset):
    """109 animals."""


@DATASET_REGISTRY.register()
class EmojiFood(FineEmojiDataset):
    """124 kinds of food and drink."""


@DATASET_REGISTRY.register()
class EmojiObjects(FineEmojiDataset):
    """351 objects."""


@DATASET_REGISTRY.register()
class EmojiTravel(FineEmojiDataset):
    """186 places, vehicles and things in the sky."""


@DATASET_REGISTRY.register()
class EmojiFaces(FineEmojiDataset):
    """119 faces."""


@DATASET_REGISTRY.register()
class EmojiPeople(FineEmojiDataset):
    """67 professions, activities and creatures, each as person, man and woman."""


@DATASET_REGISTRY.register()
class EmojiClocks(FineEmojiDataset):
    """24 clock faces, every half hour."""
