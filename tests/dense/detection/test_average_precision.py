"""AP of boxes and masks against cases computed by hand and against pycocotools."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch

from dense.detection.average_precision import AveragePrecision

SIDE = 64


def rectangle(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


@pytest.fixture
def truth(tmp_path):
    """truth(objects, categories) writes a file; objects are (image, category, box)."""

    def write(objects, groups=("", ""), images=2, **more):
        categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
        content = {
            "images": [{"id": n, "file_name": f"{n}", "height": SIDE, "width": SIDE, **more} for n in range(images)],
            "categories": [one | ({"frequency": group} if group else {}) for one, group in zip(categories, groups)],
            "annotations": [
                {
                    "id": 1 + number,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [rectangle(x1, y1, x2, y2)],
                }
                for number, (image, category, (x1, y1, x2, y2)) in enumerate(objects)
            ],
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        return tmp_path / "truth.json"

    return write


def measured(file, found, lvis=False):
    """Figures of detections {image: [(label, score, box, mask's box)]}."""
    judge = AveragePrecision([3, 8], lvis)
    for number, rows in found.items():
        masks = torch.zeros(len(rows), 1, SIDE, SIDE)
        for mask, (_, _, _, (x1, y1, x2, y2)) in zip(masks, rows):
            mask[:, y1:y2, x1:x2] = 0.9
        detection = {
            "boxes": torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([row[0] for row in rows], dtype=torch.long),
            "scores": torch.tensor([row[1] for row in rows]),
            "masks": masks,
        }
        judge.process([detection], [{"file": file, "number": number}])
    figures = judge.evaluate()
    return {**figures, **judge.summary()}


A, B = (10, 10, 30, 30), (40, 40, 60, 60)
HALF = 100 * 51 / 101  # recall levels 0, 0.01 ... 0.5 of 101, at precision 1


@pytest.mark.parametrize(
    ("found", "box", "mask"),
    [
        ({0: [(1, 0.9, A, A)], 1: [(1, 0.8, A, A)]}, 100, 100),
        ({0: [], 1: []}, 0, 0),
        ({0: [(1, 0.9, A, A)], 1: []}, HALF, HALF),
        ({0: [(2, 0.9, A, A)], 1: [(2, 0.8, A, A)]}, 0, 0),  # the other class
        (
            {0: [(1, 0.9, A, A), (1, 0.8, A, A)], 1: [(1, 0.7, A, A)]},
            (51 + 50 * 2 / 3) / 1.01,
            (51 + 50 * 2 / 3) / 1.01,
        ),
        ({0: [(1, 0.9, B, B), (1, 0.8, A, A)], 1: [(1, 0.7, A, A)]}, 200 / 3, 200 / 3),  # the best one is wrong
        ({0: [(1, 0.9, A, B)], 1: [(1, 0.8, A, B)]}, 100, 0),
        # IoU 0.75 is enough for 0.50, 0.55 ... 0.75: 6 of 10
        ({0: [(1, 0.9, (10, 10, 25, 30), A)], 1: [(1, 0.8, (10, 10, 25, 30), A)]}, 60, 100),
        ({0: [(1, 0.9, A, (10, 10, 25, 30))], 1: [(1, 0.8, A, (10, 10, 25, 30))]}, 100, 60),
    ],
)
def test_cases_by_hand(truth, found, box, mask):
    figures = measured(truth([(0, 3, A), (1, 3, A)]), found)
    assert next(iter(figures)) == "box_ap"
    assert figures["box_ap"] == pytest.approx(box, abs=1e-6)
    assert figures["mask_ap"] == pytest.approx(mask, abs=1e-6)
    assert figures["box_ap_small"] == figures["box_ap"]  # all objects are small
    assert "box_ap_large" not in figures


def test_lvis_groups_and_images_that_were_not_searched(truth):
    """Rare: found; frequent: one of two. In image 1 nobody looked for class 3, so that finding it there is no error."""
    file = truth([(0, 3, A), (0, 8, B), (1, 8, A)], ("r", "f"), neg_category_ids=[], not_exhaustive_category_ids=[])
    found = {0: [(1, 0.5, A, A), (2, 0.9, B, B)], 1: [(1, 0.9, B, B)]}
    figures = measured(file, found, lvis=True)
    assert figures["box_ap_rare"] == pytest.approx(100)
    assert figures["mask_ap_frequent"] == pytest.approx(HALF)
    assert figures["mask_ap"] == pytest.approx((100 + HALF) / 2)
    assert "box_ap_common" not in figures
    searched = truth(
        [(0, 3, A), (0, 8, B), (1, 8, A)], ("r", "f"), neg_category_ids=[3], not_exhaustive_category_ids=[]
    )
    assert measured(searched, found, lvis=True)["box_ap_rare"] == pytest.approx(50)


def test_as_pycocotools(truth):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)

    def boxes(count):
        corner = rng.integers(0, 40, (count, 2))
        return np.concatenate([corner, corner + rng.integers(4, 24, (count, 2))], axis=1).tolist()

    objects = [(int(rng.integers(6)), int(rng.choice([3, 8])), tuple(box)) for box in boxes(30)]
    file = truth(objects, images=6)
    found = {}
    for image in range(6):
        moved = [
            (1 if category == 3 else 2, float(rng.random()), tuple(int(v) + int(rng.integers(-2, 3)) for v in box))
            for place, category, box in objects
            if place == image and rng.random() < 0.8
        ]
        found[image] = [(*row, tuple(max(0, v) for v in row[2])) for row in moved]
        found[image] += [(1, float(rng.random()), box, box) for box in boxes(2)]
    figures = measured(file, found)
    rows = [
        {
            "image_id": image,
            "category_id": [3, 8][label - 1],
            "score": float(np.float32(score)),
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
        for image, some in found.items()
        for label, score, box, _ in some
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO(str(file))
        judge = evaluation.COCOeval(known, known.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert 5 < 100 * judge.stats[0] < 95
    expected = dict(zip(("box_ap", "box_ap50", "box_ap75", "box_ap_small"), 100 * judge.stats[:4]))
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_file_without_objects(truth):
    with pytest.raises(ValueError, match=r"truth.json has no objects, so there is no average precision"):
        measured(truth([]), {0: [(1, 0.9, A, A)]})


def test_missing_package_is_named(monkeypatch, truth):
    for name in ("faster_coco_eval", "faster_coco_eval.core.mask"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs faster_coco_eval.*pip install -r requirements-dense.txt"):
        measured(truth([(0, 3, A)]), {0: [(1, 0.9, A, A)]})
