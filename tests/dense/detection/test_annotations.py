"""Readers of COCO and LVIS: what is trained on, what is refused with one error, and repeat-factor sampling."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dense.detection.annotations import Pictures, RepeatSampler, read_annotations

SQUARE = [10, 8, 30, 8, 30, 28, 10, 28]


def content(**annotation):
    """Two images, the first with a square that `annotation` changes, the second without objects."""
    one = {"id": 7, "image_id": 1, "category_id": 5, "bbox": [10, 8, 20, 20], "area": 400, "iscrowd": 0}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 48, "width": 64},
            {"id": 2, "file_name": "b.png", "height": 48, "width": 64},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [{**one, "segmentation": [SQUARE], **annotation}],
    }


@pytest.fixture
def read(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / name)

    def call(told):
        (tmp_path / "instances.json").write_text(json.dumps(told))
        return read_annotations(tmp_path / "instances.json", tmp_path)

    return call


def test_boxes_classes_and_masks(read):
    found = read(content())
    assert (found.classnames, found.categories, found.groups) == (["cat", "dog"], [5, 9], [])
    assert found.frequency.tolist() == [1, 0]
    first, second = Pictures(found)
    assert first["img"].shape == (3, 48, 64)
    assert first["img"][0].unique().item() == pytest.approx(200 / 255)
    target = first["target"]
    assert type(target["boxes"]) is torch.Tensor
    assert target["boxes"].tolist() == [[10, 8, 30, 28]]
    assert target["labels"].tolist() == [1]
    mask = torch.zeros(1, 48, 64)
    mask[:, 8:28, 10:30] = 1
    assert torch.equal(target["masks"].float(), mask)
    assert [value.shape for value in second["target"].values()] == [(0, 4), (0,), (0, 48, 64)]


def test_run_lengths(read):
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[8:28, 10:30] = 1
    columns = mask.T.reshape(-1)
    ends = [0, *(np.flatnonzero(np.diff(columns)) + 1), len(columns)]
    counts = [int(b - a) for a, b in itertools.pairwise(ends)]
    found = read(content(segmentation={"size": [48, 64], "counts": counts}))
    assert torch.equal(Pictures(found)[0]["target"]["masks"][0], torch.from_numpy(mask))


def test_box_over_the_border_is_cut_and_one_outside_left_out(read, caplog):
    found = read(content(bbox=[-5, 30, 20, 40]))
    assert found.pictures[0].instances[0].box == (0, 30, 15, 48)
    assert not caplog.records
    for outside in ([70, 5, 10, 10], [-20, 5, 10, 10], [5, 5, 0, 10], [5, 5, 10, -2]):
        caplog.clear()
        assert read(content(bbox=outside)).pictures[0].instances == ()
        assert "1 boxes are empty or lie outside their image and are left out: annotations 7" in caplog.text


def test_crowds_and_empty_lists_are_no_objects(read):
    told = content(iscrowd=1, segmentation={"size": [48, 64], "counts": [100, 20, 48 * 64 - 120]})
    assert read(told).pictures[0].instances == ()
    found = read({**content(), "annotations": []})
    assert [len(one.instances) for one in found.pictures] == [0, 0]
    assert found.frequency.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 6}, "annotation 7 is of category 6, which is none of the 2 of the file"),
        ({"image_id": 3}, "annotation 7 is of image 3, which the file does not have"),
        ({"bbox": [1, 2, 3]}, r"annotation 7 has the box \[1, 2, 3\], expected \[x, y, width, height\]"),
        ({"bbox": [1, 2, math.nan, 4]}, r"annotation 7 has the box \[1, 2, nan, 4\]"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"annotation 7 has the polygon \[1, 2, 3, 4\], expected .* three points"),
        ({"segmentation": [SQUARE, [1, 2, 3, 4, 5, 6, 7]]}, "annotation 7 has the polygon .* three points or more"),
        ({"segmentation": [[1, 2, 3, "4", 5, 6]]}, "annotation 7 has the polygon"),
        ({"segmentation": []}, r"annotation 7 has the mask \[\], expected polygons or run lengths"),
        (
            {"segmentation": {"size": [64, 48], "counts": "abc"}},
            r"mask of size \[64, 48\], but its image has \[48, 64\]",
        ),
        ({"segmentation": {"size": [48, 64], "counts": [5, 6]}}, "annotation 7 has a mask of size"),
    ],
)
def test_annotations_that_cannot_be_used(read, change, message):
    with pytest.raises(ValueError, match=f"instances.json: 1 of 1 annotations cannot be used.*{message}"):
        read(content(**change))


def test_all_faults_are_counted_and_some_shown(read):
    told = content()
    told["annotations"] = [{**told["annotations"][0], "id": number, "category_id": 6} for number in range(8)]
    with pytest.raises(ValueError, match=r"8 of 8 annotations .* annotation 4 is of category 6.*; and 3 more$"):
        read(told)


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_other_files_are_refused(read, key):
    told = content()
    del told[key]
    with pytest.raises(ValueError, match=rf"cannot be read as annotations of COCO or LVIS \(KeyError: '{key}'\)"):
        read(told)
    if key != "annotations":
        with pytest.raises(ValueError, match="expected some of both"):
            read({**content(), key: []})


def test_images_missing_or_of_another_size(read, tmp_path):
    found = read(content())
    Image.new("RGB", (64, 50)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png has 64 x 50 pixels, but its annotations are for 64 x 48"):
        Pictures(found)[0]
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        read(content())


def test_lvis_names_images_by_address_and_groups_classes(read, tmp_path):
    told = content()
    told["categories"] = [{**one, "frequency": group} for one, group in zip(told["categories"], "rf")]
    for image in told["images"]:
        image["coco_url"] = f"http://images.example/train2017/{image.pop('file_name')}"
    (tmp_path / "train2017").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(tmp_path / "train2017" / name)
    found = read(told)
    assert found.groups == ["frequent", "rare"]
    assert found.pictures[0].path == str(tmp_path / "train2017" / "a.png")


def test_augmented_boxes_fit_their_masks(read):
    data = Pictures(read(content()), size=96, scale=(0.5, 2.0))
    kept = 0
    for seed in range(20):
        torch.manual_seed(seed)
        item = data[0]
        assert item["img"].shape == (3, 96, 96)
        target = item["target"]
        assert target["masks"].shape[1:] == (96, 96)
        for (x1, y1, x2, y2), mask in zip(target["boxes"].tolist(), target["masks"]):
            kept += 1
            rows, columns = torch.where(mask > 0)
            assert abs(rows.min() - y1) <= 1.5
            assert abs(rows.max() + 1 - y2) <= 1.5
            assert abs(columns.min() - x1) <= 1.5
            assert abs(columns.max() + 1 - x2) <= 1.5
            assert item["img"][0][mask > 0].float().mean() > 0.7  # the object's color moves with it
    assert kept > 10


def test_repeat_factors(read):
    told = content()
    told["images"] = [{**told["images"][0], "id": number} for number in range(400)]
    base = told["annotations"][0]
    told["annotations"] = [{**base, "id": n, "image_id": n, "category_id": 9} for n in range(200)]
    told["annotations"] += [{**base, "id": 999, "image_id": 3, "category_id": 5}]
    found = read(told)
    rare = math.sqrt(0.02 / (1 / 400))  # of image 3; the other class is in half of the images
    sampler = RepeatSampler(Pictures(found), 802, threshold=0.02)
    assert sampler.repeats[3] == pytest.approx(rare)
    assert sampler.repeats.sum() == pytest.approx(399 + rare)
    orders = [sampler.order(seed) for seed in range(60)]
    assert {len(one) for one in orders} == {len(sampler)} == {802}
    times, mean = [one.count(3) for one in orders], 802 * rare / (399 + rare)
    assert set(times) == {math.floor(mean), math.ceil(mean)}
    assert sum(times) / 60 == pytest.approx(mean, abs=0.2)
    assert all(one.count(5) in (1, 2) for one in orders)
    assert orders[0] == sampler.order(0) != orders[1]
