"""Cascade Mask R-CNN (Cai and Vasconcelos, 2019) on a pyramid of features.

torchvision's Mask R-CNN with a cascade of box heads in the place of its only one: each stage classifies and moves the
boxes that the stage before has made, and is trained with a higher IoU between a box and its object. One mask head,
trained on the boxes of the first stage and used on those of the last, as ViTDet (Li et al., 2022) has it. With one
stage and a box shift per class this is torchvision's MaskRCNN, weight for weight and figure for figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.poolers import initLevelMapper

from dense.backbone import LEVELS, STRIDES

IOU = (0.5, 0.6, 0.7)
"""Smallest IoU of a box with its object in the training of each stage (Cai and Vasconcelos, section 4)."""
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Scale of the box shifts (x, y, width, height) of each stage: later boxes are closer to their objects."""
PRIOR = 0.01
"""Probability of a class at the start where every class has its own sigmoid."""


class Pyramid(nn.Module):
    """A dense backbone with one more level, every other place of the last, for the largest anchors."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.body = backbone
        self.out_channels = int(cast(int, backbone.channels))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to features (B, channels, H / stride, W / stride) by name of the level.

        They are float32 under autocast too, as are the numbers that boxes are made of further on: bfloat16 has whole
        pixels up to 256 only.
        """
        features = {name: level.float() for name, level in self.body(image).items()}
        return {**features, "pool": F.max_pool2d(list(features.values())[-1], 1, 2)}


class ProposalHead(RPNHead):
    """Scores and box shifts of anchors in float32."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, shifts = super().forward(x)
        return [one.float() for one in scores], [one.float() for one in shifts]


class LaterStage(RoIHeads):
    """A stage after the first: learns from all boxes of the stage before, and neither draws from them nor adds any."""

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        return [torch.arange(len(one), device=one.device) for one in labels]

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:
        return list(proposals)


class CascadeHeads(RoIHeads):
    """Heads of K stages, in the place of torchvision's RoIHeads, whose box and mask head are those of the first stage.

    Args:
        later: the stages after the first; each has one box shift for all classes.
        frequency: (C,) number of images of every class. Given: classes have a sigmoid each and the federated loss;
            None: a softmax over classes and background.
        federated: classes of a batch that the federated loss looks at.
        others: of torchvision's RoIHeads.
    """

    frequency: Tensor | None

    def __init__(
        self,
        *others: Any,
        later: Sequence[LaterStage] = (),
        frequency: Tensor | None = None,
        federated: int = 50,
        **more: Any,
    ):
        super().__init__(*others, **more)
        self.later = nn.ModuleList(later)
        self.register_buffer("frequency", frequency, persistent=False)
        self.federated = federated

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of every image in evaluation, losses by name in training; the other is empty.

        Args:
            features: (B, channels, H, W) by level.
            proposals: boxes (N, 4) of every image, x1 y1 x2 y2 in pixels.
            image_shapes: height and width of every image in the batch, without its margin.
            targets: boxes (n, 4), labels (n,) from 1, masks (n, H, W) of every image.
        """
        stages = [self, *self.later]
        losses: dict[str, Tensor] = {}
        boxes, scores = list(proposals), []
        for number, stage in enumerate(stages, start=1):
            if self.training:
                boxes, matched, labels, wanted = stage.select_training_samples(boxes, targets)
                if number == 1:
                    sampled = [(b[one > 0], m[one > 0]) for b, m, one in zip(boxes, matched, labels)]
            regions = self.box_roi_pool(features, boxes, image_shapes)
            if regions.requires_grad and len(stages) > 1:  # the backbone learns from the mean of the stages
                regions.register_hook(lambda gradient: gradient / len(stages))
            logits, shifts = (one.float() for one in stage.box_predictor(stage.box_head(regions)))
            shifts = shifts.view(len(logits), -1, 4)  # (N, 1 or 1 + C, 4)
            if self.training:
                suffix = "" if number == 1 else f"_{number}"
                label, target = torch.cat(labels), torch.cat(wanted)
                losses[f"loss_classifier{suffix}"] = self.class_loss(logits, label)
                losses[f"loss_box_reg{suffix}"] = box_loss(shifts, label, target)
            else:
                scores.append(logits.softmax(1)[:, 1:] if self.frequency is None else logits[:, 1:].sigmoid())
            moved = stage.box_coder.decode(shifts.detach().flatten(1), boxes).view_as(shifts)
            moved = moved.split([len(one) for one in boxes])
            if number < len(stages):
                boxes = [clip_boxes_to_image(one[:, 0], shape) for one, shape in zip(moved, image_shapes)]
        if self.training:
            return [], {**losses, "loss_mask": self.mask_loss(features, sampled, image_shapes, targets or [])}
        shares = torch.stack(scores).mean(0).split([len(one) for one in boxes])
        found = [self.detections(*one) for one in zip(moved, shares, image_shapes)]
        logits = self.mask_logits(features, [one["boxes"] for one in found], image_shapes)
        for one, masks in zip(found, maskrcnn_inference(logits, [one["labels"] for one in found])):
            one["masks"] = masks
        return found, {}

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of class logits (N, 1 + C), background first, against labels (N,), background 0."""
        if self.frequency is None:
            return F.cross_entropy(logits, labels)
        return federated_loss(logits[:, 1:], labels - 1, self.frequency, self.federated)

    def mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        """Logits (N, 1 + C, 28, 28) of the masks in boxes."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, shapes))).float()

    def mask_loss(
        self,
        features: dict[str, Tensor],
        sampled: list[tuple[Tensor, Tensor]],
        shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """Binary cross-entropy of the masks in `sampled`, the boxes with an object and its number, by image."""
        boxes, matched = ([pair[place] for pair in sampled] for place in (0, 1))
        masks, labels = ([one[name] for one in targets] for name in ("masks", "labels"))
        return maskrcnn_loss(self.mask_logits(features, boxes, shapes), boxes, masks, labels, matched)

    def detections(self, boxes: Tensor, scores: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Detections among boxes (N, 1 or 1 + C, 4) and scores (N, C) of an image: a box and score for every class
        above the lowest score, without the weaker of two that overlap, the best `detections_per_img`."""
        boxes = clip_boxes_to_image(boxes, shape)
        row, column = torch.where(scores > self.score_thresh)
        boxes = boxes[row, column + 1 if boxes.shape[1] > 1 else torch.zeros_like(column)]
        scores, labels = scores[row, column], column + 1
        kept = remove_small_boxes(boxes, min_size=1e-2)
        kept = kept[batched_nms(boxes[kept], scores[kept], labels[kept], self.nms_thresh)[: self.detections_per_img]]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def box_loss(shifts: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 of box shifts (N, 1 or 1 + C, 4) against targets (N, 4) where there is an object, by number of boxes.

    Args:
        labels: (N,), background 0; the shift of the label is compared where every class has its own.
    """
    rows = torch.where(labels > 0)[0]
    column = labels[rows] if shifts.shape[1] > 1 else torch.zeros_like(rows)
    loss = F.smooth_l1_loss(shifts[rows, column], targets[rows], beta=1 / 9, reduction="sum")
    return loss / len(labels)


def federated_loss(logits: Tensor, labels: Tensor, frequency: Tensor, classes: int) -> Tensor:
    """Binary cross-entropy over some classes only, summed over these and averaged over boxes (Zhou et al., 2021).

    In a data set whose images are not searched for all classes, what is not annotated need not be absent. The classes
    are those of the labels and further ones, drawn by the square root of their frequency, until there are `classes`.

    Args:
        logits: (N, C).
        labels: (N,), background -1.
        frequency: (C,) number of images of every class.
    """
    chosen = labels[labels >= 0].unique()
    weight = frequency.float().sqrt().index_fill(0, chosen, 0.0)
    if (more := min(classes - len(chosen), int((weight > 0).sum()))) > 0:
        chosen = torch.cat([chosen, torch.multinomial(weight, more)])
    wanted = (labels[:, None] == chosen).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits[:, chosen], wanted, reduction="sum") / len(labels)


class Detector(GeneralizedRCNN):
    """Cascade Mask R-CNN on a dense backbone: images and targets in, losses or detections out, as torchvision's.

    The proposal network's and the heads' numbers are those of Mask R-CNN (He et al., 2017); two convolutions before the
    proposals, layer norms and the shapes of the heads are ViTDet's.

    Args:
        backbone: images (B, 3, H, W) to a dictionary of features as DenseBackbone gives them, with `channels`.
        classes: number of classes, without background.
        size: longest side in pixels to which test images are resized; training images are taken as they come.
        mean, std: of the pixels that the backbone expects.
        stages: 1 to 3.
        width: channels of the convolutions of the heads.
        hidden: width of the linear layer of a box head.
        convolutions: 3 x 3, in a box head and in the mask head.
        anchor: side of the anchors in strides of their level.
        regions: boxes of an image that the first stage learns from.
        proposals: boxes of an image from the proposal network, in training and in evaluation.
        lowest: score that a detection has at least.
        detections: of an image, at most.
        frequency, federated: as of CascadeHeads.

    Raises:
        ValueError: another number of stages.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        stages: int = 3,
        width: int = 256,
        hidden: int = 1024,
        convolutions: int = 4,
        anchor: float = 8.0,
        regions: int = 512,
        proposals: tuple[int, int] = (2000, 1000),
        lowest: float = 0.05,
        detections: int = 100,
        frequency: Tensor | None = None,
        federated: int = 50,
    ):
        if not 1 <= stages <= len(IOU):
            raise ValueError(f"a cascade of {stages} stages, expected 1 to {len(IOU)}")
        channels = int(cast(int, backbone.channels))
        layers = [width] * convolutions
        sizes = tuple((round(anchor * stride),) for stride in (*STRIDES, 2 * STRIDES[-1]))
        kept = {"training": proposals[0], "testing": proposals[1]}
        rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            ProposalHead(channels, 3, conv_depth=2),
            *(0.7, 0.3, 256, 0.5),  # IoU of object and background, anchors that are learned from, share of objects
            kept,  # of every level, before and
            kept,  # of all levels, after the suppression of boxes that overlap
            0.7,
        )

        def stage(kind: type[RoIHeads], number: int, **more: Any) -> Any:
            box_head = FastRCNNConvFCHead((channels, 7, 7), layers, [hidden], LayerNorm2d)
            predictor = box_predictor(hidden, classes, frequency is not None)
            found = (IOU[number], IOU[number], regions, 0.25, BOX_WEIGHTS[number], lowest, 0.5, detections)
            return kind(region_pool(7), box_head, predictor, *found, **more)

        heads = stage(
            CascadeHeads,
            0,
            mask_roi_pool=region_pool(14),
            mask_head=MaskRCNNHeads(channels, layers, 1, LayerNorm2d),
            mask_predictor=MaskRCNNPredictor(width, width, 1 + classes),
            later=[stage(LaterStage, number) for number in range(1, stages)],
            frequency=frequency,
            federated=federated,
        )
        transform = GeneralizedRCNNTransform(
            size, size, list(mean), list(std), size_divisible=2 * STRIDES[-1], _skip_resize=True
        )
        super().__init__(Pyramid(backbone), rpn, heads, transform)


def region_pool(side: int) -> MultiScaleRoIAlign:
    """Features of boxes, side x side, from the level of the pyramid that suits the size of a box."""
    pool = MultiScaleRoIAlign(list(LEVELS), side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]  # not guessed from the first batch
    pool.map_levels = initLevelMapper(*(int(math.log2(STRIDES[place])) for place in (0, -1)))
    return pool


def box_predictor(width: int, classes: int, sigmoid: bool) -> FastRCNNPredictor:
    """Class logits (N, 1 + C) and one box shift (N, 4) for all classes, small at the start."""
    made = FastRCNNPredictor(width, 1 + classes)
    made.bbox_pred = nn.Linear(width, 4)
    for layer, deviation in ((made.cls_score, 0.01), (made.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    if sigmoid:
        nn.init.constant_(made.cls_score.bias, -math.log((1 - PRIOR) / PRIOR))
    return made
