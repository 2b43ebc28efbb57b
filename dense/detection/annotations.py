"""Annotations of COCO and LVIS v1: images with the boxes, classes and masks of their objects."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.data.datasets.base_dataset import check_images
from dassl.data.samplers import SeededSampler
from dense.data import DenseDataset, Split
from dense.trainer import needs

logger = logging.getLogger(__name__)

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
SHOWN = 5
"""Faults of a file that a message names."""


class Instance(NamedTuple):
    """One object: box x1 y1 x2 y2 in pixels inside its image, label from 1, polygons or run lengths of its mask."""

    box: tuple[float, float, float, float]
    label: int
    segmentation: Any


class Picture(NamedTuple):
    """An image file and its objects."""

    path: str
    number: int
    height: int
    width: int
    instances: tuple[Instance, ...]


class Annotations(NamedTuple):
    """A file of annotations.

    Attributes:
        classnames, categories: name and number in the file of every class, in the order of the labels.
        groups: rare, common or frequent for every class of LVIS; empty for COCO.
    """

    file: Path
    classnames: list[str]
    categories: list[int]
    pictures: list[Picture]
    groups: list[str]

    @property
    def frequency(self) -> Tensor:
        """(C,) number of images that have an object of the class."""
        found = torch.zeros(len(self.categories), dtype=torch.long)
        for picture in self.pictures:
            for label in {one.label for one in picture.instances}:
                found[label - 1] += 1
        return found


def read_annotations(file: str | Path, images: str | Path) -> Annotations:
    """Read a file of COCO or LVIS v1; `images` is the folder of its images.

    Boxes are cut off at the border of their image, and those that lie outside are left out with a warning; crowds,
    whose objects are not told apart, without one.

    Raises:
        FileNotFoundError: the file or an image is missing.
        ValueError: no JSON with images, annotations and categories, or annotations that cannot be used: of an unknown
            image or category, with a box that is not four numbers, a broken polygon, or a mask of another size.
    """
    file, objects = Path(file), defaultdict(list)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pictures = {one["id"]: picture_of(one, Path(images)) for one in content["images"]}
        classes = sorted(content["categories"], key=lambda one: one["id"])
        labels = {one["id"]: label for label, one in enumerate(classes, start=1)}
        names, annotations = [str(one["name"]) for one in classes], content["annotations"]
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{file} cannot be read as annotations of COCO or LVIS ({type(err).__name__}: {err}); expected JSON with "
            "images (id, file_name, height, width), categories (id, name) and annotations"
        ) from err
    if not pictures or not labels:
        raise ValueError(f"{file} has {len(pictures)} images and {len(labels)} categories, expected some of both")
    problems, outside = [], []
    for one in annotations:
        if problem := problem_of(one, pictures, labels):
            problems.append(f"annotation {one.get('id')} {problem}")
        elif not one.get("iscrowd", 0):
            x, y, width, height = one["bbox"]
            image = pictures[one["image_id"]]
            box = (max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height))
            if box[0] < box[2] and box[1] < box[3]:
                objects[image.number].append(Instance(box, labels[one["category_id"]], one["segmentation"]))
            else:
                outside.append(str(one.get("id")))
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{file}: {len(problems)} of {len(annotations)} annotations cannot be used, correct or remove them: "
            f"{'; '.join(problems[:SHOWN])}{more}"
        )
    if outside:
        logger.warning(
            "%s: %d boxes are empty or lie outside their image and are left out: annotations %s",
            file,
            len(outside),
            ", ".join(outside[:SHOWN]) + (", ..." if len(outside) > SHOWN else ""),
        )
    check_images(one.path for one in pictures.values())
    found = [one._replace(instances=tuple(objects[number])) for number, one in pictures.items()]
    groups = [GROUPS[one["frequency"]] for one in classes if "frequency" in one]
    return Annotations(file, names, list(labels), found, groups)


def picture_of(image: Mapping[str, Any], folder: Path) -> Picture:
    """An image of the file, without its objects; LVIS names no file but an address, .../train2017/000000391895.jpg."""
    name = image["file_name"] if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])
    return Picture(str(folder / name), image["id"], int(image["height"]), int(image["width"]), ())


def problem_of(annotation: Mapping[str, Any], images: Mapping[int, Picture], labels: Mapping[int, int]) -> str:
    """Reason why an annotation cannot be used; "" if it can."""
    number, category = annotation.get("image_id"), annotation.get("category_id")
    if number is None or number not in images:
        return f"is of image {number}, which the file does not have"
    if category not in labels:
        return f"is of category {category}, which is none of the {len(labels)} of the file"
    box, mask = annotation.get("bbox"), annotation.get("segmentation")
    if not (isinstance(box, list) and len(box) == 4 and all_finite(box)):
        return f"has the box {box}, expected [x, y, width, height]"
    size = [images[number].height, images[number].width]
    if isinstance(mask, Mapping):
        counts = mask.get("counts")
        if mask.get("size") != size or (isinstance(counts, list) and sum(counts) != math.prod(size)):
            return f"has a mask of size {mask.get('size')}, but its image has {size} (height, width)"
        return "" if isinstance(counts, (list, str)) else "has a mask without counts"
    if not (isinstance(mask, list) and mask):
        return f"has the mask {mask}, expected polygons or run lengths"
    for polygon in mask:
        if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all_finite(polygon)):
            return f"has the polygon {str(polygon)[:60]}, expected [x, y, x, y, x, y, ...] with three points or more"
    return ""


def all_finite(values: list[Any]) -> bool:
    """True if all are numbers, none of them infinite or NaN."""
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def mask_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Mask (height, width) uint8 of polygons or run lengths.

    Raises:
        ImportError: the package that knows COCO's masks is not installed.
    """
    coco = needs("faster_coco_eval.core.mask")
    if isinstance(segmentation, list):
        segmentation = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco.frPyObjects(segmentation, height, width)
    return coco.decode(segmentation)


def target_of(picture: Picture) -> dict[str, Tensor]:
    """Boxes (n, 4), labels (n,) and masks (n, H, W) of the objects of an image, which may be none."""
    size = (picture.height, picture.width)
    masks = [mask_of(one.segmentation, *size) for one in picture.instances]
    boxes = torch.tensor([one.box for one in picture.instances], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor([one.label for one in picture.instances], dtype=torch.long),
        "masks": tv_tensors.Mask(np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)),
    }


class Pictures(Dataset):
    """Images (3, H, W) from 0 to 1 with their targets; in training resized at random, flipped and cut out.

    Args:
        annotations: of the images.
        size: side in pixels of the square that a training image becomes; 0 leaves images as they are.
        scale: range of the longest side of a training image, in `size`, before the square is cut out or filled up
            (large-scale jitter of Ghiasi et al., 2021).
    """

    def __init__(self, annotations: Annotations, size: int = 0, scale: tuple[float, float] = (0.1, 2.0)):
        self.annotations, self.pictures = annotations, annotations.pictures
        self.items = [Datum(one.path) for one in self.pictures]
        steps: list[Any] = [v2.ToImage()]
        if size:
            fill = {tv_tensors.Image: 127, "others": 0}  # about the mean
            steps += [v2.RandomHorizontalFlip(), v2.ScaleJitter((size, size), scale)]
            steps += [v2.RandomCrop(size, pad_if_needed=True, fill=fill)]
        self.transform = v2.Compose([*steps, v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image, target, path, and place: the file of annotations and the number of the image in it.

        Raises:
            ValueError: the image has another size than its annotations say.
        """
        picture = self.pictures[index]
        with Image.open(picture.path) as opened:
            image = opened.convert("RGB")
        if (image.height, image.width) != (picture.height, picture.width):
            raise ValueError(
                f"{picture.path} has {image.width} x {image.height} pixels, but its annotations are for "
                f"{picture.width} x {picture.height}"
            )
        pixels, target = self.transform(image, target_of(picture))
        target = {name: value.as_subclass(Tensor) for name, value in target.items()}
        corners = target["boxes"].view(-1, 2, 2)
        seen = target["masks"].bool().flatten(1).any(1) & (corners[:, 0] < corners[:, 1]).all(1)  # not cut off
        target = {name: value[seen] for name, value in target.items()}
        place = {"file": self.annotations.file, "number": picture.number}
        return {"img": pixels.as_subclass(Tensor), "target": target, "impath": picture.path, "place": place}


class RepeatSampler(SeededSampler):
    """Images with rare classes more often than others (repeat-factor sampling, Gupta et al., 2019).

    The share of an image among the items is that of its factor, the largest max(1, sqrt(threshold / share of images
    with the class)) of its classes. Every epoch has each image the whole number of times below or above.

    Args:
        data: images to train on.
        length: items of an epoch.
        threshold: share of images below which a class counts as rare.
    """

    def __init__(self, data: Pictures, length: int, threshold: float):
        share = data.annotations.frequency.double().clamp(min=1) / len(data)
        factor = (threshold / share).sqrt().clamp(min=1).tolist()
        found = [max((factor[one.label - 1] for one in picture.instances), default=1.0) for picture in data.pictures]
        self.repeats, self.length = torch.tensor(found, dtype=torch.double), length

    def __len__(self) -> int:
        return self.length

    def order(self, seed: int) -> list[int]:
        """Every image floor or ceil of its mean number of times, in random order."""
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.repeats), generator=rng)
        edges = self.repeats[order].cumsum(0)
        edges = edges * (self.length / edges[-1])
        edges[-1] = self.length
        start = torch.rand((), generator=rng, dtype=torch.double)
        times = (edges + start).floor().diff(prepend=edges.new_zeros(1)).long()
        drawn = order.repeat_interleave(times)
        return drawn[torch.randperm(len(drawn), generator=rng)].tolist()


class Coco(DenseDataset):
    """Base of data sets on COCO's images; classes are those of the validation split, which is the smaller file.

    Raises:
        FileNotFoundError: a file is missing.
    """

    dataset_dir = "coco"
    files = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
    folders: tuple[str, str] = ("train2017", "val2017")

    def __init__(self, cfg: Any) -> None:
        root = Path(cfg.DATASET.ROOT).expanduser() / self.dataset_dir
        splits = {
            split: Split(root / folder, instances=root / file)
            for split, folder, file in zip(("train", "test"), self.folders, self.files)
        }
        if missing := [str(one.instances) for one in splits.values() if not Path(str(one.instances)).is_file()]:
            raise FileNotFoundError(f"{type(self).__name__} needs {' and '.join(missing)}")
        categories = json.loads((root / self.files[1]).read_text(encoding="utf-8"))["categories"]
        names = [str(one["name"]) for one in sorted(categories, key=lambda one: one["id"])]
        super().__init__(names, splits, root)


@DATASET_REGISTRY.register()
class CocoInstances(Coco):
    """COCO 2017: DATASET.ROOT/coco/annotations, train2017 and val2017, 80 classes; val2017 is the test split."""


@DATASET_REGISTRY.register()
class LVIS(Coco):
    """LVIS v1 on COCO's images: DATASET.ROOT/coco with lvis_v1_train.json and lvis_v1_val.json beside the images."""

    files = ("lvis_v1_train.json", "lvis_v1_val.json")
    folders = ("", "")
