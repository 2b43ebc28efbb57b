"""Depth of images, and findings in the data of a run."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dassl.data.audit import audit_data, class_findings, same_pictures
from dassl.data.datasets import Datum
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


def test_32_bit_integers_have_no_known_range(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="32 bit integers"):
        read_image(tmp_path / "deep.tif")


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
    assert checks(audit) == [("note", "depth"), ("warning", "constant images"), ("warning", "train and test")]
    assert audit.plain()["findings"][2]["text"].endswith("such as " + str(tmp_path / "test.png"))


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
