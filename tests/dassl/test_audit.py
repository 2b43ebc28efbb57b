"""Depth of images, and findings in the data of a run."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dassl.data.audit import audit_data, class_findings, picture_findings, same_pictures
from dassl.data.datasets import Datum
from dassl.data.near_copies import near_copies
from dassl.utils import read_image

RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_are_scaled(tmp_path, suffix):
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    pixels = np.asarray(read_image(path))
    assert pixels.shape == (64, 64, 3)
    expected = [[round(int(value) * 255 / 65535) for value in row] for row in RAMP.astype(np.uint16)]
    assert np.array_equal(pixels[..., 0], expected)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_floats_are_scaled_and_refused_outside_of_their_range(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(path)
    assert np.abs(np.asarray(read_image(path))[..., 1] - RAMP * 255 / 65535).max() <= 0.5
    for values in (RAMP, RAMP / 65535 - 0.5, np.full((8, 8), np.nan)):
        Image.fromarray(values.astype(np.float32)).save(path)
        with pytest.raises(ValueError, match=r"float\.tif.*expected 0 to 1"):
            read_image(path)


def test_32_bit_integers_are_scaled_or_refused_where_they_would_be_black(tmp_path):
    path = tmp_path / "deep.tif"
    for values in (RAMP, RAMP - 1):
        Image.fromarray(values.astype(np.int32)).save(path)
        with pytest.raises(ValueError, match=r"32 bit integers from .* to 6553"):
            read_image(path)
    Image.fromarray((RAMP * 32767).astype(np.int32)).save(path)
    expected = RAMP * 32767 * 255 / (2**31 - 1)
    assert np.abs(np.asarray(read_image(path))[..., 0] - expected).max() <= 0.51


def test_the_transform_of_a_model_scales_deep_images_too():
    from clip.api import preprocessing

    plain = preprocessing(32)
    reference = plain(Image.fromarray((RAMP // 257).astype(np.uint8)))
    for image in (RAMP.astype(np.uint16), RAMP.astype(np.int32), (RAMP / 65535).astype(np.float32)):
        assert (plain(Image.fromarray(image)) - reference).abs().max() < 0.04  # two levels of 255
    for image in (RAMP.astype(np.float32), (RAMP - 9).astype(np.int32)):
        with pytest.raises(ValueError, match="expected 0 to"):
            plain(Image.fromarray(image))


def test_8_bit_images_are_as_pillow_reads_them(tmp_path):
    Image.fromarray((RAMP // 256).astype(np.uint8)).save(tmp_path / "grey.png")
    expected = np.asarray(Image.open(tmp_path / "grey.png").convert("RGB"))
    assert np.array_equal(np.asarray(read_image(tmp_path / "grey.png")), expected)


def write(path, seed, constant=False, dtype=np.uint8):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)) * (not constant)
    Image.fromarray(pixels.astype(np.uint8) if dtype is np.uint8 else pixels[..., 0].astype(dtype)).save(path)
    return str(path)


def invented(tmp_path, names=("cat", "dog"), per_class=4):
    train = [
        Datum(write(tmp_path / f"{name}{n}.png", 10 * label + n), label, classname=name)
        for label, name in enumerate(names)
        for n in range(per_class)
    ]
    test = [Datum(write(tmp_path / "test.png", 99), 0, classname=names[0])]
    return SimpleNamespace(train_x=train, test=test, classnames=list(names))


def checks(audit):
    return [(finding.level, finding.check) for finding in audit.findings]


def test_data_in_order_have_no_findings(tmp_path, caplog):
    audit = audit_data(invented(tmp_path), shots=4)
    assert audit.findings == []
    assert (audit.pictures, audit.compared) == (9, 1)
    assert not caplog.text


def test_findings(tmp_path, caplog):
    data = invented(tmp_path, ("cat",))
    assert checks(audit_data(data)) == [("warning", "classes")]
    data = invented(tmp_path, ("hot dog", "Hot_Dog", "x" * 250))
    assert checks(audit_data(data, 16)) == [
        ("warning", "class names"),
        ("warning", "class names"),
        ("warning", "shots"),
    ]
    assert "3 of 3 classes have fewer training images than the 16 shots asked for: hot dog (4)" in caplog.text
    data = invented(tmp_path)
    (tmp_path / "test.png").write_bytes((tmp_path / "dog2.png").read_bytes())
    write(tmp_path / "cat0.png", 0, constant=True)
    write(tmp_path / "cat1.png", 0, dtype=np.uint16)
    audit = audit_data(data)
    assert checks(audit) == [
        ("note", "depth"),
        ("warning", "constant images"),
        ("warning", "dark images"),
        ("warning", "train and test"),
    ]
    assert audit.plain()["findings"][-1]["text"].endswith("such as " + str(tmp_path / "test.png"))


def photo(seed, side=96):
    """A smooth picture of invented blobs, so that scaling and compression leave its looks."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def test_copies_that_were_scaled_or_compressed_are_found(tmp_path):
    train, test = [], []
    for seed in range(20):
        train.append(str(tmp_path / f"train{seed}.png"))
        photo(seed).save(train[-1])
    copies = {
        "a.jpg": lambda path: photo(3).save(path, quality=60),
        "b.png": lambda path: photo(5).resize((50, 50)).save(path),
        "c.webp": lambda path: photo(7).save(path, quality=70),
        "same.png": lambda path: photo(9).save(path),
        "other.png": lambda path: photo(99).save(path),
        "mirror.png": lambda path: photo(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path),
        "tint.png": lambda path: Image.blend(photo(3), Image.new("RGB", (96, 96), "red"), 0.2).save(path),
        "damaged.png": lambda path: path.write_bytes(b"no image"),
    }
    for name, save in copies.items():
        save(tmp_path / name)
        test.append(str(tmp_path / name))
    pairs, read = near_copies(train, [*test, str(tmp_path / "missing.png")])
    assert {pair.split("/")[-1].removesuffix(")"): pair.partition(" (as ")[0] for pair in pairs} == {
        f"train{seed}.png": str(tmp_path / name)
        for seed, name in ((3, "a.jpg"), (5, "b.png"), (7, "c.webp"), (9, "same.png"))
    }
    assert read == 27
    assert near_copies(train, test, until=0.0) == ([], 0)
    assert near_copies(train, train) == ([], 40)  # a file is no copy of itself


def test_an_audit_tells_copies_byte_for_byte_from_near_ones(tmp_path, caplog):
    items = []
    for seed in range(4):
        photo(seed).save(tmp_path / f"{seed}.png")
        items.append(Datum(str(tmp_path / f"{seed}.png"), seed % 2, classname="ab"[seed % 2]))
    photo(1).save(tmp_path / "near.jpg")
    (tmp_path / "same.png").write_bytes((tmp_path / "2.png").read_bytes())
    test = [Datum(str(tmp_path / name), 0, classname="a") for name in ("near.jpg", "same.png")]
    audit = audit_data(SimpleNamespace(train_x=items, test=test, classnames=["a", "b"]))
    assert checks(audit) == [("warning", "train and test")] * 2
    assert "1 test images are training images too, byte for byte" in caplog.text
    assert "1 of the test images looked at are nearly a training image" in caplog.text
    assert audit.plain()["looks"] == 6


def test_dark_and_clipped_images(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 4096, (32, 32)).astype(np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray((255 * rng.integers(0, 2, (32, 32))).astype(np.uint8)).save(tmp_path / "cut.png")
    Image.fromarray(rng.integers(0, 255, (32, 32)).astype(np.uint8)).save(tmp_path / "good.png")
    found = picture_findings([str(tmp_path / f"{name}.png") for name in ("dark", "cut", "good")])[1]
    assert [(finding.level, finding.check) for finding in found] == [
        ("note", "depth"), ("warning", "dark images"), ("note", "clipped images"),
    ]  # fmt: skip
    assert [finding.text.split("/")[-1] for finding in found] == ["dark.png", "dark.png", "cut.png"]


def test_images_of_equal_size_and_other_content_are_not_the_same(tmp_path):
    data = invented(tmp_path)
    for name, content in (("cat0.png", b"abc"), ("cat1.png", b"abd"), ("test.png", b"abe")):
        (tmp_path / name).write_bytes(content)
    assert same_pictures(data.train_x, data.test) == ([], 1)


def test_class_names_are_compared_as_they_are_read():
    assert not class_findings(["maple", "Maple tree"])
    assert class_findings(["maple_tree", "Maple  tree"])


def test_an_audit_ends_in_time(tmp_path, monkeypatch):
    data = invented(tmp_path)
    monkeypatch.setattr("dassl.data.audit.SECONDS", 0.0)
    start = time.monotonic()
    audit = audit_data(data)
    assert (audit.pictures, audit.compared) == (0, 0)
    assert time.monotonic() - start < 1
