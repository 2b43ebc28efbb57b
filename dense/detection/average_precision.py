"""Average precision of boxes and masks, as COCO and LVIS measure it, by faster-coco-eval."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl.utils import distributed
from dense.trainer import needs

logger = logging.getLogger(__name__)

FIGURES = {"ap": "AP_all", "ap50": "AP_50", "ap75": "AP_75"}
"""Ours to the package's names; AP over IoU 0.50, 0.55 ... 0.95."""
GROUPS = {
    **{f"ap_{size}": f"AP_{size}" for size in ("small", "medium", "large")},
    "ap_rare": "APr",
    "ap_common": "APc",
    "ap_frequent": "APf",
}
"""Figures that go to the result only: by area of the object, and by frequency of the class in LVIS."""
LVIS_DETECTIONS = 300  # of an image that are looked at; COCO looks at 100 of every class


class AveragePrecision:
    """Collects the detections of an evaluation and measures them against the file of annotations.

    Args:
        categories: number in the file of every class.
        lvis: images are annotated for some classes only, and classes are rare, common or frequent.
    """

    def __init__(self, categories: list[int], lvis: bool):
        self.categories, self.lvis = categories, lvis
        self.reset()

    def reset(self) -> None:
        """Forget the detections."""
        self.rows: list[dict[str, Any]] = []
        self.file: Path | None = None
        self.groups: dict[str, float] = {}

    def process(self, found: list[dict[str, Tensor]], targets: list[dict[str, Any]]) -> None:
        """Take detections of some images.

        Args:
            found: boxes (n, 4), labels (n,) from 1, scores (n,) and masks (n, 1, H, W) from 0 to 1 of each.
            targets: the file of annotations and the number of the image there.
        """
        encode = needs("faster_coco_eval.core.mask").encode
        for one, target in zip(found, targets):
            self.file = target["file"]
            masks = (one["masks"][:, 0] > 0.5).to(torch.uint8).cpu().permute(1, 2, 0).numpy()  # (H, W, n)
            corners = one["boxes"].cpu()
            sizes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
            runs = encode(masks.copy(order="F")) if len(sizes) else []
            for box, label, score, run in zip(sizes, one["labels"].tolist(), one["scores"].tolist(), runs):
                row = {"image_id": target["number"], "category_id": self.categories[label - 1], "score": score}
                self.rows.append({**row, "bbox": box, "segmentation": run})

    def evaluate(self) -> OrderedDict[str, float]:
        """AP in percent, box_ap first; it is 0 if nothing was found. Groups without objects in the file are left out.

        Raises:
            ValueError: the file has no objects.
        """
        rows = [row for share in distributed.all_gather_object(self.rows) for row in share]
        results: OrderedDict[str, float] = OrderedDict()
        for kind, left_out in (("box", "segmentation"), ("mask", "bbox")):
            found = [{key: value for key, value in row.items() if key != left_out} for row in rows]
            stats = self.measure("bbox" if kind == "box" else "segm", found)
            results.update({f"{kind}_{name}": stats[key] for name, key in FIGURES.items()})
            known = {name: stats[key] for name, key in GROUPS.items() if stats.get(key, -1.0) >= 0}
            self.groups |= {f"{kind}_{name}": value for name, value in known.items()}
        shown = ", ".join(f"{name} {value:.1f}" for name, value in [*results.items(), *self.groups.items()])
        logger.info("* %d detections: %s", len(rows), shown)
        return results

    def measure(self, kind: str, rows: list[dict[str, Any]]) -> dict[str, float]:
        """The package's figures, in percent, of bbox or segm."""
        package = needs("faster_coco_eval")
        truth = package.COCO(str(self.file))
        found = truth.loadRes(rows)
        judge = package.COCOeval_faster(truth, found, kind, print_function=logger.debug, lvis_style=self.lvis)
        if self.lvis:
            judge.params.maxDets = [LVIS_DETECTIONS]
        judge.run()
        if judge.stats_as_dict["AP_all"] < 0:
            raise ValueError(f"{self.file} has no objects, so there is no average precision on it")
        return {name: 100 * value for name, value in judge.stats_as_dict.items()}

    def summary(self) -> dict[str, Any]:
        """AP by area and by frequency of the class."""
        return dict(self.groups)
