"""Pictures with label maps: ADE20K's SceneParse150 layout, and the augmentation of UperNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import read_image
from datasets.embedded.pictures import root_folder
from dense.data import DenseDataset, Split

IGNORED = 255
"""Label of pixels that are neither learned nor measured."""
SUFFIXES = {".jpg", ".jpeg", ".png"}


class Augment(NamedTuple):
    """Training view: resized at random, cropped, mirrored, colours changed.

    Attributes:
        size: height and width of the crop.
        side: shorter side that a scale of 1 means, in pixels; 0 for that of the picture.
        scales: smallest and largest scale.
        most: largest share of a crop's labelled pixels that one class may have; 10 crops are tried.
        colors: change brightness, contrast, saturation and hue too.
    """

    size: tuple[int, int]
    side: int = 0
    scales: tuple[float, float] = (0.5, 2.0)
    most: float = 0.75
    colors: bool = True

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """image (3, H, W) uint8 and label (H, W) to those of the crop; padding is ignored."""
        low, high = self.scales
        shorter = min(image.shape[-2:])
        scale = (self.side or shorter) / shorter * (low + (high - low) * float(torch.rand(())))
        shape = [max(1, round(scale * side)) for side in image.shape[-2:]]
        pair = [T.resize(one, shape) for one in (tv_tensors.Image(image), tv_tensors.Mask(label))]
        fill: Any = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
        crop = v2.RandomCrop(self.size, pad_if_needed=True, fill=fill)
        for _ in range(10):
            cut = crop(*pair)
            counts = torch.bincount(cut[1].flatten().long(), minlength=IGNORED + 1)[:IGNORED]
            if counts.max() <= self.most * counts.sum():
                break
        cut = v2.RandomHorizontalFlip()(*cut)
        return v2.RandomPhotometricDistort()(*cut) if self.colors else cut  # type: ignore[no-any-return]


class LabelledPictures:
    """Pictures and their label maps: dictionaries of img (3, H, W) normalised, label (H, W) int64 and index.

    Args:
        images, masks: folders; a map has its picture's stem and holds 0 for nothing and 1 + c for class c.
        classes: number of classes.
        nothing: label of pixels of nothing.
        mean, std: of the pixels, by channel.
        augment: of training; None for pictures as they are.

    Raises:
        FileNotFoundError: a picture has no map, or a map no picture.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        classes: int,
        nothing: int,
        mean: list[float],
        std: list[float],
        augment: Augment | None = None,
    ) -> None:
        pictures = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in SUFFIXES}
        maps = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() == ".png"}
        if alone := sorted(pictures.keys() ^ maps.keys()):
            raise FileNotFoundError(
                f"{len(alone)} pictures of {images} and label maps of {masks} have no partner of the same name, such "
                f"as {alone[0]}; put the missing files there, or remove the others"
            )
        self.items = [Datum(str(path), 0) for path in pictures.values()]
        self.maps, self.classes, self.nothing, self.augment = list(maps.values()), classes, nothing, augment
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture (3, H, W) uint8 and its labels (H, W) uint8.

        Raises:
            ValueError: the map is of another size, in colours, or of more classes.
        """
        image = T.pil_to_tensor(read_image(self.items[index].impath))
        path = self.maps[index]
        with Image.open(path) as file:
            label = np.array(file)
        if label.shape != image.shape[1:]:
            raise ValueError(
                f'the label map "{path}" is {" x ".join(map(str, label.shape))}, expected {image.shape[1]} x '
                f"{image.shape[2]} of its picture, one number for each pixel"
            )
        if label.min() < 0 or label.max() > self.classes:
            raise ValueError(
                f'"{path}" has the label {label.max()}, expected 0 (nothing) to {self.classes} (the last class)'
            )
        found = torch.from_numpy(label.astype(np.int64) - 1)
        return image, torch.where(found < 0, self.nothing, found).to(torch.uint8)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read(index)
        if self.augment is not None:
            image, label = self.augment(image, label)
        pixels = T.normalize(image.float() / 255, self.mean, self.std)
        return {"img": pixels.as_subclass(Tensor), "label": label.as_subclass(Tensor).long(), "index": index}


@DATASET_REGISTRY.register()
class ADE20K(DenseDataset):
    """SceneParse150: 150 classes, 20,210 pictures for training and 2,000 for validation, which the test is as well.

    Folder ADEChallengeData2016: images/ and annotations/, each with training/ and validation/; objectInfo150.txt.

    Raises:
        FileNotFoundError: the names of the classes are missing.
    """

    dataset_dir = "ADEChallengeData2016"
    config_name = "ade20k"
    template = "a photo of a {}."

    def __init__(self, cfg: Any) -> None:
        root = root_folder(cfg.DATASET.ROOT, "ADE20K")
        folder = root / self.dataset_dir
        file = folder / "objectInfo150.txt"
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: unpack ADEChallengeData2016.zip of the SceneParse150 benchmark in {root}"
            )
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        names = [row[-1].replace(";", ",").split(",")[0].strip() for row in rows]
        splits = {
            name: Split(folder / "images" / part, folder / "annotations" / part)
            for name, part in (("train", "training"), ("val", "validation"), ("test", "validation"))
        }
        super().__init__(names, splits, root)
