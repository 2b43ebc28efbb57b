"""UCF101: the middle frame of each video of an action."""

import re
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.prepare.splits import Splits, read_lines, split_trainval
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class UCF101(KnownDataset):
    """101 actions; ApplyEyeMakeup is "Apply_Eye_Makeup"."""

    @classmethod
    def make_items(cls, folder: Path, rng: Any) -> Splits:
        lists, images = folder / "ucfTrainTestlist", folder / cls.image_dir
        labels = {}
        for line in read_lines(lists / "classInd.txt"):
            number, _, name = line.strip().partition(" ")
            if not number.isdigit() or int(number) < 1 or not name:
                raise ValueError(f'"{lists / "classInd.txt"}" has the line {line!r}, expected "<number from 1> <Name>"')
            labels[name] = int(number) - 1
        trainval, test = (read_list(lists / f"{part}list01.txt", images, labels) for part in ("train", "test"))
        return *split_trainval(trainval, rng=rng), test


def read_list(path: Path, images: Path, labels: dict[str, int]) -> list[Datum]:
    """Items of a list of lines "<Name>/<video>.avi"; ValueError for any other line. More fields are left out."""
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        action, _, video = line.strip().split(" ")[0].partition("/")
        if action not in labels or not video.endswith(".avi"):
            raise ValueError(f'line {number} of "{path}" is {line!r}, expected "<Name of classInd.txt>/<video>.avi"')
        name = "_".join(re.findall("[A-Z][^A-Z]*", action))
        items.append(Datum(str(images / name / f"{video[:-4]}.jpg"), labels[action], classname=name))
    return items
