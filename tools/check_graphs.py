"""ONNX graphs of all methods against the models themselves: python -m tools.check_graphs [METHOD...]

Every method is built as its config for the embedded CLIP says, what it learns is moved by random numbers, and the
logits of onnxruntime and torch are compared on random pictures and on handwritten digits.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import align_prompt
import clip
from align_prompt.export.graph import TOLERANCE, write_onnx
from align_prompt.model import Model
from align_prompt.registries import names_of_methods
from align_prompt.source import find_source
from align_prompt.training import config_for
from dassl.data.class_list import ClassList
from dassl.data.datasets import build_dataset
from dassl.engine import build_trainer
from dassl.engine.command import known_config
from dassl.utils.errors import error_line
from trainers.parts.inputs import input_options

BACKBONE = "emoji-ViT-S/8"
SPREAD = 0.02  # of the random numbers


def example(method: str, names: Sequence[str], folder: Path) -> Model:
    """A method on the embedded CLIP whose learned parameters are moved by random numbers."""
    cfg = known_config()
    config = config_for(method, BACKBONE)
    if config is not None:
        cfg.merge_from_file(config)
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.OUTPUT_DIR, cfg.USE_CUDA = method, BACKBONE, str(folder), False
    cfg.DATASET.NUM_SHOTS = 1
    known = clip.input_of(BACKBONE)
    assert known is not None
    given = {f"INPUT.{key}": value for key, value in input_options(known).items()}
    cfg.merge_from_list([item for pair in given.items() for item in pair])
    trainer = build_trainer(cfg, ClassList(cfg, names, "a picture of a {}."))
    if not trainer.get_model_names():  # learns nothing
        return Model(dataclasses.replace(find_source(BACKBONE), cfg=cfg), names, "cpu")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in trainer.get_model_names():
            for value in trainer._models[name].parameters():
                value.add_(SPREAD * torch.randn(value.shape, generator=draw))
    trainer.save_model(0, str(folder))
    return align_prompt.load(next(folder.glob("*/model.pth.tar-1")), device="cpu")


def check(method: str, names: Sequence[str], pictures: Sequence[str]) -> str:
    """Largest differences of a method's graph, or why it has none."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        model = example(method, names, Path(folder))
        try:
            said = write_onnx(model, path)
        except ValueError as err:
            return f"no graph: {error_line(err)}"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        image = torch.cat(list(model.image_batches(pictures)))
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        model = Model(model.source, names, "cpu", "fp32")
        expected = model.logits(pictures)
        worst = float((found - expected).abs().max() / expected.abs().max())
        state = "" if worst <= TOLERANCE else f", MORE THAN {TOLERANCE:g}"
        return f"random pictures: {said}; digits: {worst:.1g}{state}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each method; 1 if a graph differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_graphs", description="ONNX graphs against models.")
    parser.add_argument("method", nargs="*", help="default: all")
    parser.add_argument("--root", default="data", help="folder of data sets, where the digits are (default data)")
    args = parser.parse_args(argv)
    cfg = known_config()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Digits", args.root
    digits = build_dataset(cfg)
    pictures = [item.impath for item in (digits.test or [])[::50]]
    failed = False
    for method in args.method or names_of_methods():
        said = check(method, digits.classnames[:3], pictures)
        failed |= "MORE THAN" in said
        print(f"{method}: {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
