"""Image transforms by name. The engine fixes their order, the config only chooses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from dassl.config.defaults import TRANSFORMS

__all__ = ["AVAI_CHOICES", "INTERPOLATION_MODES", "build_transform"]

logger = logging.getLogger(__name__)

AVAI_CHOICES = TRANSFORMS

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

_POLICIES = {
    "imagenet_policy": T.AutoAugmentPolicy.IMAGENET,
    "cifar10_policy": T.AutoAugmentPolicy.CIFAR10,
    "svhn_policy": T.AutoAugmentPolicy.SVHN,
}


def build_transform(cfg: Any, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
    """The transform from a PIL image to a tensor (3, height, width) in [0, 1], or normalised.

    Training: Resize to INPUT.SIZE (only without a random crop), random_translation, random_crop, random_resized_crop,
    random_flip, policies, randaugment, colorjitter, randomgrayscale, gaussian_blur, ToTensor, cutout, normalize,
    gaussian_noise, instance_norm. Test: Resize of the smaller edge to max(INPUT.SIZE), CenterCrop, ToTensor, normalize,
    instance_norm. The policies and randaugment are torchvision's.

    Args:
        choices: names to use instead of cfg.INPUT.TRANSFORMS. center_crop is accepted and changes nothing.

    Returns:
        The transform; None if INPUT.NO_TRANSFORM.

    Raises:
        ValueError: unknown name or interpolation; the message lists the known ones.
    """
    if cfg.INPUT.NO_TRANSFORM:
        logger.info("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    unknown = [choice for choice in choices if choice not in AVAI_CHOICES]
    if unknown:
        raise ValueError(
            f"unknown transform {', '.join(map(str, unknown))}; expected some of {', '.join(AVAI_CHOICES)}"
        )
    if cfg.INPUT.INTERPOLATION not in INTERPOLATION_MODES:
        raise ValueError(
            f"INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION!r}, expected one of {', '.join(INTERPOLATION_MODES)}"
        )
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    for line, _ in steps:
        logger.info("+ %s", line)
    return T.Compose([transform for _, transform in steps])


def _train_steps(options: Any, choices: Sequence[str]) -> list[tuple[str, Any]]:
    logger.info("Building transform_train")
    size = tuple(options.SIZE)
    named = f"{size[0]}x{size[1]}"
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    scale = tuple(options.RRCROP_SCALE)
    steps: list[tuple[str, Any]] = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {named}", T.Resize(size, interpolation=interpolation)))
    if "random_translation" in choices:
        steps.append(("random translation", Random2DTranslation(size[0], size[1], interpolation=interpolation)))
    if "random_crop" in choices:
        padding = options.CROP_PADDING
        steps.append((f"random crop (padding = {padding})", T.RandomCrop(size, padding=padding)))
    if "random_resized_crop" in choices:
        crop = T.RandomResizedCrop(size, scale=scale, interpolation=interpolation)
        steps.append((f"random resized crop (size={size}, scale={scale})", crop))
    if "random_flip" in choices:
        steps.append(("random flip", T.RandomHorizontalFlip()))
    for name, policy in _POLICIES.items():
        if name in choices:
            steps.append((name.replace("_", " "), T.AutoAugment(policy)))
    if "randaugment" in choices:
        n, m = options.RANDAUGMENT_N, options.RANDAUGMENT_M
        steps.append((f"randaugment (n={n}, m={m})", T.RandAugment(num_ops=n, magnitude=m)))
    if "colorjitter" in choices:
        b, c, s, h = options.COLORJITTER_B, options.COLORJITTER_C, options.COLORJITTER_S, options.COLORJITTER_H
        line = f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})"
        steps.append((line, T.ColorJitter(brightness=b, contrast=c, saturation=s, hue=h)))
    if "randomgrayscale" in choices:
        steps.append((f"random gray scale (p={options.RGS_P})", T.RandomGrayscale(p=options.RGS_P)))
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(options.GB_K)], p=options.GB_P)
        steps.append((f"gaussian blur (kernel={options.GB_K}, p={options.GB_P})", blur))
    steps.append(_to_tensor())
    if "cutout" in choices:
        line = f"cutout (n_holes={options.CUTOUT_N}, length={options.CUTOUT_LEN})"
        steps.append((line, Cutout(options.CUTOUT_N, options.CUTOUT_LEN)))
    if "normalize" in choices:
        steps.append(_normalize(options))
    if "gaussian_noise" in choices:
        line = f"gaussian noise (mean={options.GN_MEAN}, std={options.GN_STD})"
        steps.append((line, GaussianNoise(options.GN_MEAN, options.GN_STD)))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _test_steps(options: Any, choices: Sequence[str]) -> list[tuple[str, Any]]:
    logger.info("Building transform_test")
    size = tuple(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    steps: list[tuple[str, Any]]
    if options.RESIZE == "squash":
        steps = [(f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=interpolation))]
    else:
        edge = max(size)
        steps = [
            (f"resize the smaller edge to {edge}", T.Resize(edge, interpolation=interpolation)),
            (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        ]
    steps.append(_to_tensor())
    if "normalize" in choices:
        steps.append(_normalize(options))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _to_tensor() -> tuple[str, Any]:
    return "to torch tensor of range [0, 1]", T.ToTensor()


def _normalize(options: Any) -> tuple[str, Any]:
    mean, std = options.PIXEL_MEAN, options.PIXEL_STD
    return f"normalization (mean={mean}, std={std})", T.Normalize(mean=mean, std=std)


class Random2DTranslation:
    """With probability p enlarge the PIL image to 9/8 of (height, width) and crop that size anywhere, else resize."""

    def __init__(
        self, height: int, width: int, p: float = 0.5, interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ):
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.p:
            return F.resize(image, [self.height, self.width], interpolation=self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        image = F.resize(image, [height, width], interpolation=self.interpolation)
        top = int(torch.randint(height - self.height + 1, ()))
        left = int(torch.randint(width - self.width + 1, ()))
        return F.crop(image, top, left, self.height, self.width)

    def __repr__(self) -> str:
        return f"Random2DTranslation(size=({self.height}, {self.width}), p={self.p}, {self.interpolation.value})"


class Cutout:
    """Set `n_holes` squares of `length` pixels of a tensor (channels, height, width) to zero.

    Centres are anywhere in the image; what lies outside is cut off.
    """

    def __init__(self, n_holes: int = 1, length: int = 16):
        self.n_holes = n_holes
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        image = image.clone()
        height, width = image.shape[-2:]
        for _ in range(self.n_holes):
            top = int(torch.randint(height, ())) - self.length // 2
            left = int(torch.randint(width, ())) - self.length // 2
            image[..., max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return image

    def __repr__(self) -> str:
        return f"Cutout(n_holes={self.n_holes}, length={self.length})"


class GaussianNoise:
    """Add normal noise of the given mean and standard deviation to a tensor."""

    def __init__(self, mean: float = 0.0, std: float = 0.15):
        self.mean = mean
        self.std = std

    def __call__(self, image: Tensor) -> Tensor:
        return image + torch.randn(image.shape) * self.std + self.mean

    def __repr__(self) -> str:
        return f"GaussianNoise(mean={self.mean}, std={self.std})"


class InstanceNormalization:
    """Give every channel of a tensor (channels, height, width) mean 0 and standard deviation 1 over its pixels."""

    def __init__(self, eps: float = 1e-8):
        self.eps = eps

    def __call__(self, image: Tensor) -> Tensor:
        mean = image.mean(dim=(-2, -1), keepdim=True)
        std = image.std(dim=(-2, -1), keepdim=True)
        return (image - mean) / (std + self.eps)

    def __repr__(self) -> str:
        return f"InstanceNormalization(eps={self.eps})"
