"""One training step of a dense task on a ViT-B/16 with random weights: peak memory of the process and time.

Forward, losses, backward and AdamW's update on pictures of noise, in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clip.model import VisionTransformer
from dense.backbone import DenseBackbone
from dense.detection.cascade import Detector
from dense.llava.data import IGNORED
from dense.llava.model import VisionTower, build_llava, choose_learned
from dense.segmentation.network import UperNetwork, segmentation_loss

from .report import show


def detection(backbone: DenseBackbone, images: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Cascade Mask R-CNN of three stages and 80 classes, ten objects in every picture."""
    side = images.shape[-1]
    model = Detector(backbone, 80, side, [0.5] * 3, [0.25] * 3)
    corner = torch.rand(10, 2) * side / 2
    boxes = torch.cat([corner, corner + side / 16 + torch.rand(10, 2) * side / 4], dim=1)
    masks = torch.zeros(10, side, side, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist()):
        mask[y1:y2, x1:x2] = 1
    targets = [{"boxes": boxes, "labels": torch.arange(1, 11), "masks": masks}] * len(images)
    return model, lambda: torch.stack(list(model(list(images), targets).values())).sum()


def segmentation(backbone: DenseBackbone, images: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    """UperNet with its auxiliary head and 150 classes."""
    model = UperNetwork(backbone, 150)
    label = torch.randint(150, (len(images), *images.shape[2:]))

    def loss() -> Tensor:
        found = model(images)
        return segmentation_loss(found.main, label) + 0.4 * segmentation_loss(found.auxiliary, label)

    return model, loss


def llava(backbone: DenseBackbone, images: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Second stage of LLaVA around a Llama of 12 blocks of width 768 and 32,000 tokens, 64 tokens of text a picture."""
    from transformers import LlamaConfig, LlamaForCausalLM

    numbers: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    tower = VisionTower(backbone.tower, side=images.shape[-1])
    model = build_llava(tower, LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **numbers)), 3)
    choose_learned(model, stage=2)
    ids = torch.cat([torch.full((tower.patches,), 3), torch.randint(4, 32_000, (64,))]).expand(len(images), -1)
    labels = ids.where(ids != 3, IGNORED)
    return model.train(), lambda: model(input_ids=ids, pixel_values=images, labels=labels).loss


TASKS = {"detection": detection, "segmentation": segmentation, "llava": llava}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=TASKS, default="detection")
    parser.add_argument("--size", type=int, default=512, help="side of a picture in pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures (default %(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the tower (default %(default)s)")
    parser.add_argument("--window", type=int, default=0, help="patches, 0 = the whole picture (default %(default)s)")
    parser.add_argument("--checkpoint", action="store_true", help="compute blocks again in the backward pass")


def run(arguments: argparse.Namespace) -> None:
    """Measure one step and print it."""
    torch.manual_seed(0)
    tower = VisionTransformer(224, 16, 768, arguments.layers, 12, 512)
    backbone = DenseBackbone(tower, 256, 16, arguments.window, checkpoint=arguments.checkpoint)
    images = torch.rand(arguments.batch, 3, arguments.size, arguments.size)
    model, step = TASKS[arguments.task](backbone, images)
    optim = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    start, cpu = time.perf_counter(), time.process_time()
    step().backward()
    optim.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "peak_gib": peak / (2**30 if sys.platform == "darwin" else 2**20),
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
    }
    names = ("task", "size", "batch", "layers", "window", "checkpoint")
    show("dense_step", figures, {name: getattr(arguments, name) for name in names})
