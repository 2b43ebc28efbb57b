"""Image transforms."""

import logging

import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms.functional import InterpolationMode

from dassl.config import get_cfg_default
from dassl.data.fingerprint import transform_repr
from dassl.data.transforms import (
    AVAI_CHOICES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
    build_transform,
)

BICUBIC = InterpolationMode.BICUBIC
FAMILY = ("random_resized_crop", "random_flip", "normalize")


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (32, 32)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = FAMILY
    return cfg


@pytest.fixture
def image():
    torch.manual_seed(0)
    return T.ToPILImage()(torch.rand(3, 50, 80))


def test_test_images_are_cropped_or_squashed(cfg, image):
    for resize, first in (
        ("shortest", [T.Resize(32, BICUBIC), T.CenterCrop((32, 32))]),
        ("squash", [T.Resize((32, 32), BICUBIC)]),
    ):
        cfg.INPUT.RESIZE = resize
        plain = T.Compose([*first, T.ToTensor(), T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)])
        assert torch.equal(build_transform(cfg, is_train=False)(image), plain(image))


def test_family_training_transform(cfg, image, caplog):
    with caplog.at_level(logging.INFO):
        own = build_transform(cfg, is_train=True)
    plain = T.Compose(
        [
            T.RandomResizedCrop((32, 32), scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.ToTensor(),
            T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )
    assert repr(own) == repr(plain)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = plain(image)
        torch.manual_seed(seed)
        assert torch.equal(own(image), expected)
    assert [record.message for record in caplog.records] == [
        "Building transform_train",
        "+ random resized crop (size=(32, 32), scale=(0.08, 1.0))",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ]


def test_family_test_transform(cfg, image, caplog):
    with caplog.at_level(logging.INFO):
        own = build_transform(cfg, is_train=False)
    resized = image.resize((int(32 * 80 / 50), 32), Image.BICUBIC)
    left = round((resized.width - 32) / 2)
    expected = T.ToTensor()(resized.crop((left, 0, left + 32, 32)))
    expected = (expected - torch.tensor(cfg.INPUT.PIXEL_MEAN)[:, None, None]) / torch.tensor(cfg.INPUT.PIXEL_STD)[
        :, None, None
    ]
    assert torch.allclose(own(image), expected)
    messages = [record.message for record in caplog.records]
    assert messages[:3] == ["Building transform_test", "+ resize the smaller edge to 32", "+ 32x32 center crop"]


def test_order_is_fixed_by_the_engine(cfg):
    names = [name for name in AVAI_CHOICES if name not in ("random_resized_crop", "random_crop")]
    kinds = [type(step).__name__ for step in build_transform(cfg, choices=names).transforms]
    assert kinds == (
        ["Resize", "Random2DTranslation", "RandomHorizontalFlip"]
        + ["AutoAugment"] * 3
        + ["RandAugment", "ColorJitter", "RandomGrayscale", "RandomApply", "ToTensor", "Cutout", "Normalize"]
        + ["GaussianNoise", "InstanceNormalization"]
    )
    assert repr(build_transform(cfg, choices=names[::-1])) == repr(build_transform(cfg, choices=names))
    for crop in ("random_crop", "random_resized_crop"):
        first = build_transform(cfg, choices=[crop]).transforms[0]
        assert type(first).__name__ in ("RandomCrop", "RandomResizedCrop")


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_every_choice_gives_an_image(cfg, image, choice):
    cfg.INPUT.GB_K = 5
    choices = [choice] if choice == "random_crop" else [choice, "random_resized_crop"]
    for is_train in (True, False):
        out = build_transform(cfg, is_train=is_train, choices=choices)(image)
        assert out.shape == (3, 32, 32)
        assert out.isfinite().all()


def test_center_crop_changes_nothing(cfg):
    assert repr(build_transform(cfg, choices=["center_crop"])) == repr(build_transform(cfg, choices=[]))


def test_only_the_resize_has_an_interpolation(cfg):
    assert "interpolation=bicubic" in transform_repr(build_transform(cfg, choices=[]))
    cfg.INPUT.INTERPOLATION = "nearest"
    assert "interpolation=nearest" in transform_repr(build_transform(cfg, choices=["random_resized_crop"]))


def test_no_transform_and_faults(cfg):
    with pytest.raises(ValueError, match="unknown transform randflip; expected some of random_flip, "):
        build_transform(cfg, choices=["randflip"])
    cfg.INPUT.INTERPOLATION = "lanczos"
    with pytest.raises(ValueError, match="'lanczos', expected one of bilinear, bicubic, nearest"):
        build_transform(cfg)
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_cutout_zeroes_squares():
    torch.manual_seed(0)
    ones = torch.ones(3, 40, 40)
    sizes = set()
    for _ in range(30):
        out = Cutout(1, 8)(ones)
        hole = (out == 0).all(0)
        assert torch.equal(out == 0, hole.expand(3, -1, -1))
        rows, columns = hole.any(1).sum().item(), hole.any(0).sum().item()
        assert hole.sum().item() == rows * columns
        sizes.add((rows, columns))
    assert (8, 8) in sizes
    assert max(max(size) for size in sizes) == 8
    assert torch.equal(ones, torch.ones(3, 40, 40))


def test_gaussian_noise_and_instance_norm():
    torch.manual_seed(0)
    noise = GaussianNoise(0.5, 0.15)(torch.zeros(3, 100, 100))
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.std().item() == pytest.approx(0.15, abs=0.01)
    normed = InstanceNormalization()(torch.rand(3, 50, 50) * torch.tensor([1.0, 5.0, 9.0])[:, None, None])
    assert normed.mean((1, 2)).abs().max() < 1e-5
    assert (normed.std((1, 2)) - 1).abs().max() < 1e-5


def test_random_translation(image):
    torch.manual_seed(0)
    still = Random2DTranslation(32, 32, p=0.0)(image)
    assert still.tobytes() == T.functional.resize(image, [32, 32]).tobytes()
    moved = {Random2DTranslation(32, 32, p=1.0)(image).tobytes() for _ in range(20)}
    assert len(moved) > 5
    large = T.functional.resize(image, [36, 36])
    crops = {large.crop((x, y, x + 32, y + 32)).tobytes() for x in range(5) for y in range(5)}
    assert moved <= crops
