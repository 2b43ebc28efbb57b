"""Cascade Mask R-CNN as a task of `train.py`: boxes and masks of objects, on COCO, LVIS or EmojiScenes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from dassl.config import CfgNode, Option
from dassl.data.samplers import SeededSampler
from dassl.engine import TRAINER_REGISTRY
from dense.detection.annotations import Annotations, Pictures, RepeatSampler, read_annotations
from dense.detection.average_precision import AveragePrecision
from dense.detection.cascade import IOU, Detector
from dense.trainer import DenseTrainer, dense_options
from trainers.parts.options import count

DRAWN = 0.3  # lowest score of what is drawn, besides the best of a picture
COLORS = ("red", "blue", "orange", "magenta", "cyan", "yellow")
SIDE = 256  # of a picture on the sheet, in pixels


@TRAINER_REGISTRY.register()
class CascadeMaskRCNN(DenseTrainer):
    """Trains a detector on the instances of a dense data set; figures are the AP of boxes and masks."""

    node = "CASCADE"

    @staticmethod
    def defaults() -> CfgNode:
        return dense_options(
            "CASCADE",
            {
                "SIZE": count(1024, "side of a training picture and longest side of a test picture, in pixels"),
                "SCALE": Option(
                    (0.1, 2.0),
                    "range of the longest side of a training picture before it is cut, in SIZE",
                    length=2,
                    kind=float,
                    rule=(lambda ends: 0 < ends[0] <= ends[1], "two numbers above 0, the smaller first"),
                ),
                "STAGES": Option(3, "of the cascade; 1 is Mask R-CNN", low=1, high=len(IOU)),
                "CHANNELS": count(256, "of the pyramid"),
                "WIDTH": count(256, "channels of the convolutions in the heads"),
                "HIDDEN": count(1024, "width of the linear layer in a box head"),
                "CONVOLUTIONS": count(4, "3 x 3, in a box head and in the mask head"),
                "ANCHOR": Option(8.0, "side of the anchors in strides of their level", above=0),
                "REGIONS": count(512, "boxes of a picture that the first stage learns from"),
                "PROPOSALS": Option(
                    (2000, 1000),
                    "boxes of a picture for the first stage, in training and in evaluation",
                    low=1,
                    length=2,
                    kind=int,
                ),
                "LOWEST_SCORE": Option(0.05, "of a detection", low=0, below=1),
                "DETECTIONS": count(100, "of a picture, at most"),
                "FEDERATED": count(
                    0, "classes of a batch in the federated loss, with a sigmoid each; 0 = softmax", low=0
                ),
                "REPEAT": Option(
                    0.0,
                    "share of pictures below which a class makes its pictures come more often; 0 = never",
                    low=0,
                    high=1,
                ),
            },
        )

    def read_split(self, split: str, train: bool) -> Pictures:
        """Raises ValueError if the file has other classes than the data set."""
        found = read_annotations(self.dataset.file(split, "instances"), self.dataset.file(split, "images"))
        if found.classnames != (names := self.dataset.classnames):
            raise ValueError(
                f"{found.file} has {len(found.classnames)} classes ({', '.join(found.classnames[:3])} ...), expected "
                f"the {len(names)} of {self.cfg.DATASET.NAME} ({', '.join(names[:3])} ...)"
            )
        self.annotations: Annotations = found
        if not train:
            return Pictures(found)
        self.frequency = found.frequency
        return Pictures(found, self.options.SIZE, tuple(self.options.SCALE))

    def sampler(self, pictures: Any, length: int) -> SeededSampler:
        if self.options.REPEAT == 0:
            return super().sampler(pictures, length)
        return RepeatSampler(pictures, length, self.options.REPEAT)

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
        """Lists, as pictures have different sizes and numbers of objects."""
        return {name: [item[name] for item in items] for name in items[0]}

    def build_network(self) -> Detector:
        options, pixels = self.options, self.cfg.INPUT
        return Detector(
            self.backbone(channels=options.CHANNELS),
            self.num_classes,
            options.SIZE,
            pixels.PIXEL_MEAN,
            pixels.PIXEL_STD,
            options.STAGES,
            options.WIDTH,
            options.HIDDEN,
            options.CONVOLUTIONS,
            options.ANCHOR,
            options.REGIONS,
            tuple(options.PROPOSALS),
            options.LOWEST_SCORE,
            options.DETECTIONS,
            self.frequency if options.FEDERATED else None,
            options.FEDERATED,
        )

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        targets = [{name: value.to(self.device) for name, value in one.items()} for one in batch["target"]]
        return self.network([one.to(self.device) for one in batch["img"]], targets)

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        return [one.to(self.device) for one in batch["img"]], batch["place"]

    def build_evaluator(self) -> AveragePrecision:
        found = self.annotations
        return AveragePrecision(found.categories, bool(found.groups))

    def drawings(self, count: int) -> list[Tensor]:
        """The first test pictures with the boxes, masks, classes and scores of what was found."""
        data, drawn = self.test_loader.dataset, []
        for index in range(min(count, len(data))):
            image = data[index]["img"]
            found: Any = self.model_inference([image.to(self.device)])[0]
            kept = found["scores"] >= found["scores"][:1].clamp(max=DRAWN)  # the best come first
            masks, boxes = (found[name][kept].cpu() for name in ("masks", "boxes"))
            pairs = zip(found["labels"][kept].tolist(), found["scores"][kept].tolist())
            names = [f"{self.lab2cname[label - 1]} {score:.2f}" for label, score in pairs]
            scale = SIDE / max(image.shape[1:])
            picture = F.interpolate(image[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
            picture = (picture.clamp(0, 1) * 255).to(torch.uint8)
            if len(names):
                masks = F.interpolate(masks, size=picture.shape[1:], mode="bilinear")[:, 0] > 0.5
                colors = [COLORS[number % len(COLORS)] for number in range(len(names))]
                picture = draw_segmentation_masks(picture, masks, alpha=0.5, colors=colors)
                picture = draw_bounding_boxes(picture, boxes * scale, names, colors, width=2)
            height, width = picture.shape[1:]
            drawn.append(F.pad(picture, (0, SIDE - width, 0, SIDE - height), value=255))
        return drawn
