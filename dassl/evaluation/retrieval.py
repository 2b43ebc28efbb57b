"""Retrieval between images and captions."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dassl.utils import distributed

from .build import EVALUATOR_REGISTRY
from .evaluator import GROUP, EvaluatorBase

__all__ = ["Retrieval", "image_ranks", "pairing", "text_ranks"]

logger = logging.getLogger(__name__)

DEPTHS = (1, 5, 10)


@EVALUATOR_REGISTRY.register()
class Retrieval(EvaluatorBase):
    """Recall at 1, 5 and 10 of captions for an image and of images for a caption, in percent.

    The "classes" are all captions, those of an image next to each other, and the label of an image is the number of its
    first caption; `datasets.image_text.retrieval` makes data sets like this. A search for the captions of an image
    succeeds if any of them is among the first K; a search for the image of a caption if that image is.

    Ties count against the model: a wrong candidate that is exactly as similar as the right one stands before it. A
    model that finds everything equally similar has a recall of 0.

    In a run of several processes every process gets the same results.
    """

    def __init__(self, cfg: Any, lab2cname: dict[int, str] | None = None, **kwargs: Any):
        super().__init__(cfg)
        if cfg.TEST.PREDICTIONS:
            raise ValueError("TEST.PREDICTIONS writes the classes of images, and a retrieval has none: set it False")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take the similarities (B, C) of a batch of images with all captions, and the labels (B,) of the images.

        Raises:
            ValueError: the shapes do not match, or a similarity is NaN, which may be noticed some batches later.
        """
        if mo.dim() != 2 or gt.shape != mo.shape[:1]:
            raise ValueError(f"expected logits (B, C) and labels (B,), got {tuple(mo.shape)} and {tuple(gt.shape)}")
        self._waiting.append((mo.detach().float(), gt))
        if mo.device.type == "cpu" or len(self._waiting) == GROUP:
            self._read()

    def _read(self) -> None:
        """Bring what waits to the host."""
        if not self._waiting:
            return
        logits, labels = (torch.cat(column).cpu() for column in zip(*self._waiting))
        self._waiting = []
        if broken := int(logits.isnan().any(1).sum()):
            raise ValueError(f"the similarities of {broken} of {len(logits)} images are NaN")
        self._logits.append(logits)
        self._labels.append(labels)

    def evaluate(self) -> OrderedDict[str, float]:
        """mean_recall, then image_to_text_r1, _r5, _r10 and text_to_image_r1, _r5, _r10, logged.

        mean_recall is the mean of the six. Each is the share of all images, or all captions.

        Raises:
            ValueError: nothing was processed, or the labels are not those of a retrieval data set.
        """
        self._read()
        labels = torch.cat([torch.empty(0, dtype=torch.long), *self._labels])
        gathered = distributed.all_gather_object(labels.tolist())
        captions = max(distributed.all_gather_object(self._logits[0].shape[1] if self._logits else 0))
        pairs = pairing([label for part in gathered for label in part], captions)
        logits = torch.cat([torch.empty(0, captions), *self._logits])
        own = torch.searchsorted(pairs.first, labels)
        by_image = _whole(image_ranks(logits, own, pairs.image))
        truth = _sum(_true_similarity(logits, own, pairs.image))
        by_text = _sum(text_ranks(logits, own, pairs.image, truth))
        results: OrderedDict[str, float] = OrderedDict(mean_recall=0.0)
        for name, ranks in (("image_to_text", by_image), ("text_to_image", by_text)):
            for depth in DEPTHS:
                results[f"{name}_r{depth}"] = 100.0 * float((ranks < depth).double().mean())
        results["mean_recall"] = sum(results.values()) / (2 * len(DEPTHS))
        self._total = len(by_image)
        logger.info(
            "=> result\n* images: %s, captions: %s\n%s",
            f"{len(by_image):,}",
            f"{captions:,}",
            "\n".join(f"* {name}: {value:.1f}%" for name, value in results.items()),
        )
        return results

    def summary(self) -> dict[str, Any]:
        """Further entries of result.json: the number of images."""
        return {"total": self._total}


class Pairing(NamedTuple):
    """Assignment of captions to images.

    first: (N,) number of the first caption of each image, ascending. image: (C,) image by caption.
    """

    first: Tensor
    image: Tensor


def pairing(labels: list[int], captions: int) -> Pairing:
    """From the labels of all images.

    Raises:
        ValueError: there are none, two images share one, or no image has the first caption.
    """
    if not labels:
        raise ValueError("there is nothing to evaluate: no image was processed")
    first = torch.tensor(sorted(labels))
    if len(first.unique()) < len(first) or int(first[0]) != 0 or int(first[-1]) >= captions:
        raise ValueError(
            "the labels are not those of a data set for retrieval, where every image has its own captions: "
            "TEST.EVALUATOR Retrieval goes with data sets such as Flickr30k, COCOCaptions and EmojiRetrieval"
        )
    return Pairing(first, torch.searchsorted(first, torch.arange(captions), right=True) - 1)


def image_ranks(logits: Tensor, own: Tensor, image: Tensor) -> Tensor:
    """Rank, from 0, of the best caption of each image: wrong captions that are as similar or more, (B,).

    Args:
        logits: (B, C).
        own: (B,) numbers of the images.
        image: (C,) image by caption.
    """
    true = image[None, :] == own[:, None]
    best = logits.masked_fill(~true, -torch.inf).amax(dim=1, keepdim=True)
    return ((logits >= best) & ~true).sum(dim=1)


def _true_similarity(logits: Tensor, own: Tensor, image: Tensor) -> Tensor:
    """Similarity (C,) of each caption with its image; 0 where that is an image of another process."""
    place = torch.full((int(image.max()) + 1,), -1)  # row of each image
    place[own] = torch.arange(len(own))
    row = place[image]
    mine = row >= 0
    found = torch.zeros(len(image))
    found[mine] = logits[row[mine], mine.nonzero()[:, 0]]
    return found


def text_ranks(logits: Tensor, own: Tensor, image: Tensor, truth: Tensor) -> Tensor:
    """Number of images (C,) among these that are wrong for a caption and as similar to it as its own, or more.

    Args:
        logits: (B, C).
        own: (B,) numbers of the images.
        image: (C,) image by caption.
        truth: (C,) similarity of each caption with its own image.
    """
    return ((logits >= truth) & (image[None, :] != own[:, None])).sum(dim=0)


def _sum(value: Tensor) -> Tensor:
    """Sum over the processes."""
    return torch.stack([torch.from_numpy(part) for part in distributed.all_gather_object(value.numpy())]).sum(dim=0)


def _whole(value: Tensor) -> Tensor:
    """Parts of all processes, one after the other."""
    return torch.cat([torch.from_numpy(part) for part in distributed.all_gather_object(value.numpy())])
