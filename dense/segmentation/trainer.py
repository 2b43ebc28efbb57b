"""Semantic segmentation: UperNet on the image tower, and the tower's tokens against class names, without training."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as T
from torchvision.utils import draw_segmentation_masks

from clip import CLIP
from dassl.config import CfgNode, Option
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import distributed
from dense.backbone import DenseBackbone
from dense.segmentation.data import IGNORED, Augment, LabelledPictures
from dense.segmentation.network import UperNetwork, View, segmentation_loss
from dense.trainer import PATCH_SIZE, DenseTrainer, dense_options, needs
from trainers.parts.options import count, weight
from trainers.parts.prompted_clip import ensemble_features
from trainers.parts.templates import TEMPLATE_SETS, template_set

logger = logging.getLogger(__name__)

TILE = 128  # pixels of a picture on the sheet


def seen_options() -> dict[str, Option]:
    """Options of what is seen of the pictures."""
    return {
        "SIDE": count(0, "shorter side of the pictures in pixels; 0 = as they are", low=0),
        "TEST_SCALES": Option([1.0], "scales whose probabilities are averaged", above=0, kind=float),
        "TEST_FLIP": Option(False, "average mirrored pictures too"),
        "STRIDE": Option(2 / 3, "of the sliding window, as a share of INPUT.SIZE", above=0, high=1),
    }


class MeanIoU:
    """Mean intersection over union of all pictures together, counted by torchmetrics.

    Args:
        names: of the classes.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        kind = needs("torchmetrics.classification").MulticlassConfusionMatrix
        self.matrix = kind(len(names), ignore_index=IGNORED)

    def reset(self) -> None:
        """Forget everything."""
        self.matrix.reset()

    def process(self, predicted: list[Tensor], label: list[Tensor], **_: Any) -> None:
        """Take label maps (H, W), predicted and true, of some pictures."""
        for one, other in zip(predicted, label):
            self.matrix.update(one.cpu()[None], other.cpu()[None])

    def evaluate(self) -> OrderedDict[str, float]:
        """miou, pixel_accuracy and mean_accuracy in percent; means over the classes that occur.

        Raises:
            ValueError: no pixel is labelled.
        """
        self.counts = self.matrix.compute().double()  # rows: true classes
        hits, true = self.counts.diagonal(), self.counts.sum(1)
        union = true + self.counts.sum(0) - hits
        if not true.sum():
            raise ValueError("there is nothing to evaluate: no pixel is labelled")
        self.iou = 100 * hits / union.clamp(min=1)
        accuracy = 100 * hits / true.clamp(min=1)
        values = self.iou[union > 0].mean(), 100 * hits.sum() / true.sum(), accuracy[true > 0].mean()
        found = OrderedDict(zip(("miou", "pixel_accuracy", "mean_accuracy"), map(float, values)))
        logger.info("=> result\n%s", "\n".join(f"* {name}: {value:.1f}%" for name, value in found.items()))
        return found

    def summary(self) -> dict[str, Any]:
        """For every class that occurs its label, pixels, those found, accuracy and IoU in percent."""
        rows = zip(
            self.names, self.counts.sum(1).long().tolist(), self.counts.diagonal().long().tolist(), self.iou.tolist()
        )
        classes = {
            name: {"label": label, "total": total, "correct": hit, "accuracy": 100 * hit / total, "iou": iou}
            for label, (name, total, hit, iou) in enumerate(rows)
            if total
        }
        return {"per_class": classes}


class SegmentationTrainer(DenseTrainer):
    """Pictures, evaluation and drawings of both ways; subclasses give `scores`."""

    @property
    def names(self) -> list[str]:
        """Classes that are told apart."""
        return self.dataset.classnames

    @property
    def nothing(self) -> int:
        """Label of pixels of nothing."""
        return IGNORED if len(self.names) == self.dataset.num_classes else self.dataset.num_classes

    def read_split(self, split: str, train: bool) -> LabelledPictures:
        options, pixels = self.options, self.cfg.INPUT
        augment = None
        if train and self.learns:
            size = (options.CROP, options.CROP) if options.CROP else tuple(pixels.SIZE)
            augment = Augment(size, options.SIDE, tuple(options.SCALES), options.MOST, options.COLORS)
        images, masks = (self.dataset.file(split, kind) for kind in ("images", "masks"))
        statistics = list(pixels.PIXEL_MEAN), list(pixels.PIXEL_STD)
        return LabelledPictures(images, masks, self.dataset.num_classes, self.nothing, *statistics, augment)

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """Tensors where all sizes are equal, lists otherwise."""
        if len({item["img"].shape for item in items}) == 1:
            return default_collate(items)
        return {key: [item[key] for item in items] for key in items[0]}

    def build_evaluator(self) -> MeanIoU:
        return MeanIoU(self.names)

    def parse_batch_test(self, batch: Any) -> tuple[Any, Any]:
        return batch["img"], batch["label"]

    def model_inference(self, input: Any) -> Any:
        """Predicted label maps (H, W) of pictures (B, 3, H, W), or of a list of (3, H, W)."""
        options = self.options
        view = View(
            tuple(self.cfg.INPUT.SIZE), options.STRIDE, options.SIDE, tuple(options.TEST_SCALES), options.TEST_FLIP
        )
        groups = [input] if isinstance(input, Tensor) else [one[None] for one in input]
        return [
            one for group in groups for one in view.probabilities(self.scores, group.to(self.device)).argmax(1).unbind()
        ]

    def scores(self, image: Tensor) -> Tensor:
        """Logits (B, C, H, W) of pictures (B, 3, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} scores nothing")

    def drawings(self, count: int) -> list[Tensor]:
        """Picture, prediction and truth side by side, of pictures spread evenly over the test split."""
        pictures = self.test_loader.dataset
        colors = [
            tuple(int(c) for c in torch.randint(40, 256, (3,), generator=torch.Generator().manual_seed(k)))
            for k in range(256)
        ]
        tiles = []
        for index in torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long().tolist():
            image, label = pictures.read(index)
            with self.test_precision.autocast():
                predicted = self.model_inference(pictures[index]["img"][None])[0].cpu()
            views = [image, *(painted(image, labels, colors, self.names) for labels in (predicted, label))]
            tiles.append(torch.cat([T.resize(view, [TILE, TILE], antialias=True) for view in views], dim=2))
        return tiles


def painted(image: Tensor, label: Tensor, colors: list[Any], names: list[str]) -> Tensor:
    """A picture (3, H, W) uint8 with its classes (H, W) in colours; "background" and what is ignored stay plain."""
    shown = [k for k in label.unique().tolist() if k != IGNORED and names[k] != BACKGROUND]
    if not shown:
        return image
    masks = torch.stack([label == k for k in shown])
    return draw_segmentation_masks(image, masks, alpha=0.7, colors=[colors[k] for k in shown])


BACKGROUND = "background"


@TRAINER_REGISTRY.register()
class UperNet(SegmentationTrainer):
    """UperNet's heads on the simple feature pyramid of an image tower that is fine-tuned."""

    node = "UPERNET"

    @staticmethod
    def defaults() -> CfgNode:
        return dense_options(
            "UPERNET",
            {
                "HIDDEN": count(512, "channels of the head"),
                "CHANNELS": count(256, "channels of the pyramid"),
                "AUXILIARY": weight(0.4, "weight of the auxiliary head's loss"),
                "BACKGROUND": Option(
                    "ignore",
                    "pixels of label 0, nothing: ignore (ADE20K), or a class of their own",
                    choices=("ignore", "class"),
                ),
                "CROP": count(
                    0, "side of a training crop in pixels; 0 = INPUT.SIZE, that of the windows in evaluation", low=0
                ),
                "SCALES": Option([0.5, 2.0], "smallest and largest scale in training", length=2, above=0, kind=float),
                "MOST": Option(0.75, "largest share of a crop that one class may have", above=0, high=1),
                "COLORS": Option(True, "change brightness, contrast, saturation and hue in training"),
                **seen_options(),
            },
        )

    @classmethod
    def config_problems(cls, cfg: CfgNode) -> list[str]:
        found = super().config_problems(cfg)
        if "MODEL" in cfg and cls.__name__ == cfg.TRAINER.NAME and cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2:
            found.append("DATALOADER.TRAIN_X.BATCH_SIZE is 1, expected 2 or more: the heads have batch normalization")
        return found

    @property
    def names(self) -> list[str]:
        return self.dataset.classnames + [BACKGROUND] * (self.options.BACKGROUND == "class")

    def build_network(self) -> nn.Module:
        options = self.options
        network: nn.Module = UperNetwork(self.backbone(channels=options.CHANNELS), len(self.names), options.HIDDEN)
        if distributed.get_world_size() > 1 and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return network

    def losses(self, batch: Any) -> dict[str, Tensor]:
        label = batch["label"].to(self.device, non_blocking=True)
        found = self.network(batch["img"].to(self.device, non_blocking=True))
        auxiliary = self.options.AUXILIARY * segmentation_loss(found.auxiliary, label)
        return {"ce": segmentation_loss(found.main, label), "auxiliary": auxiliary}

    def scores(self, image: Tensor) -> Tensor:
        return self.model(image).main


class TokenNetwork(nn.Module):
    """Cosines of patch tokens with class features, times CLIP's scale, bilinear to every pixel.

    Args:
        model: a CLIP.
        classes: (C, E), normalised.
        backbone: around its image tower.
        values: MaskCLIP's values of the last block, see `DenseBackbone.encode`.
    """

    def __init__(self, model: CLIP, classes: Tensor, backbone: DenseBackbone, values: bool) -> None:
        super().__init__()
        self.backbone, self.values, self.scale = backbone, values, float(model.logit_scale.exp())
        self.register_buffer("classes", classes)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W), normalised. Returns (B, C, H, W)."""
        h, w = image.shape[-2:]
        side = self.backbone.patch_size
        image = F.pad(image, (0, -w % side, 0, -h % side))
        tokens = F.normalize(self.backbone.tokens(image, self.values), dim=1)
        found = torch.einsum("behw,ce->bchw", tokens, self.classes.to(tokens.dtype))
        return self.scale * F.interpolate(found, image.shape[-2:], mode="bilinear")[..., :h, :w]


@TRAINER_REGISTRY.register()
class ZeroshotSegmentation(SegmentationTrainer):
    """Class names against patch tokens, without training (Zhou et al. 2022, "Extract Free Dense Labels from CLIP")."""

    node = "ZEROSHOT_SEGMENTATION"
    learns = False

    @staticmethod
    def defaults() -> CfgNode:
        return dense_options(
            "ZEROSHOT_SEGMENTATION",
            {
                "TOKENS": Option(
                    "values",
                    "values: the last block mixes nothing (MaskCLIP); plain: the tower's tokens as they are",
                    choices=("values", "plain"),
                ),
                "TEMPLATES": Option(
                    "dataset", "sentences, see [zero-shot CLIP](methods/zsclip.md)", choices=TEMPLATE_SETS
                ),
                "PATCH_SIZE": PATCH_SIZE,
                **seen_options(),
            },
            backbone=False,
            learns=False,
        )

    def build_network(self) -> nn.Module:
        model, options = self.load_clip().requires_grad_(False), self.options
        template = self.cfg.INPUT.TEMPLATE or self.dataset.template
        sentences = template_set(options.TEMPLATES, self.cfg.DATASET.NAME, template)
        classes = ensemble_features(model, self.names, sentences)
        backbone = DenseBackbone(model, 8, options.PATCH_SIZE or None)
        return TokenNetwork(model, classes, backbone, options.TOKENS == "values").eval()

    def scores(self, image: Tensor) -> Tensor:
        return self.model(image)
