"""Graphs from a preprocessed picture to logits: torch.export and ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError

import align_prompt
from align_prompt.model import Model
from clip import Encoded
from trainers.base import PromptedCLIP

TOLERANCE = 1e-4  # of the logits, relative to the largest, between torch and onnxruntime
OPSET = 18
_RESIZE = {
    "shortest": "shorter side to the larger of the sizes, then center crop",
    "squash": "both sides to the sizes",
}


class Graph(nn.Module):
    """(B, 3, height, width), preprocessed -> logits (B, C), with the encoded classes as constants."""

    pooled: Tensor
    tokens: Tensor

    def __init__(self, model: Model):
        super().__init__()
        prompted, text = model.prompted, model.trainer.text
        image_side: Any = nn.Module()  # the text tower stays out of the graph
        image_side.visual, image_side.logit_scale = prompted.clip.visual, prompted.clip.logit_scale
        self.prompted = PromptedCLIP(image_side, prompted.learner, prompted.score).eval()
        self.register_buffer("pooled", text.pooled.clone())
        self.register_buffer("tokens", text.tokens.clone())

    def forward(self, image: Tensor) -> Tensor:
        text = Encoded(self.pooled, self.tokens)
        return self.prompted(image, text).logits.float()


def graph_of(model: Model) -> tuple[Graph, Tensor]:
    """The graph in fp32 on the CPU, and an example of three pictures.

    Raises:
        ValueError: the method's text depends on the picture, or the method adapts to pictures, or it has a model of
            another kind, or no classes.
    """
    model = Model(model.source, model.classnames or None, "cpu", "fp32")
    if model.prompted.learner.conditional:
        raise ValueError(
            f"{model.method} encodes all classes anew for every picture, which no fixed graph does: export a bundle"
        )
    if model.trainer.adapts:
        raise ValueError(f"{model.method} adapts to every picture, which no graph does: export a bundle")
    model.encode_classes()
    height, width = model.trainer.cfg.INPUT.SIZE
    example = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    return Graph(model).requires_grad_(False), example


def exported(model: Model) -> tuple[torch.export.ExportedProgram, Graph, Tensor]:
    """The program of torch.export with a dynamic number of pictures, what it was made from, and an example.

    Raises:
        ValueError: see `graph_of`; or torch.export makes no graph of the method.
    """
    graph, example = graph_of(model)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=4096)
        try:
            program = torch.export.export(graph, (example,), dynamic_shapes={"image": {0: batch}})
        except UserError as err:
            reason = str(err).splitlines()[0]
            raise ValueError(f"{model.method} has no graph for any number of pictures: {reason}") from err
    return program, graph, example


def facts(model: Model) -> dict[str, Any]:
    """Metadata of a graph for its users."""
    options = model.source.cfg.INPUT
    return {
        "align_prompt": align_prompt.__version__,
        "method": model.method,
        "backbone": model.backbone_title,
        "classnames": model.classnames,
        "temperature": model.temperature,
        "preprocessing": {
            "size": list(options.SIZE),
            "resize": _RESIZE[options.RESIZE],
            "interpolation": options.INTERPOLATION,
            "mean": list(options.PIXEL_MEAN) if "normalize" in options.TRANSFORMS else [0, 0, 0],
            "std": list(options.PIXEL_STD) if "normalize" in options.TRANSFORMS else [1, 1, 1],
        },
    }


def write_program(model: Model, path: Path) -> str:
    """Write a .pt2 file of torch.export; returns what was checked."""
    program, graph, example = exported(model)
    metadata = {"align_prompt.json": json.dumps(facts(model))}
    torch.export.save(program, path, extra_files=metadata)
    again = torch.export.load(path).module()
    with torch.no_grad():
        return compared(graph, example, lambda image: again(image))


def write_onnx(model: Model, path: Path) -> str:
    """Write an .onnx file, image -> logits, and compare it with torch; returns what was checked.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: see `graph_of`; or onnxruntime and torch differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as err:
        raise ImportError(f"{err}: ONNX needs it, pip install onnx onnxscript onnxruntime") from err
    program, graph, example = exported(model)
    written: Any = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=["logits"], verbose=False
    )
    proto = written.model_proto
    for key, value in facts(model).items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(proto, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return compared(graph, example, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]))


@torch.no_grad()
def compared(graph: Graph, example: Tensor, run: Any) -> str:
    """Compare what `run` computes with the model itself, for one, two and four pictures.

    Raises:
        ValueError: they differ by more than TOLERANCE of the largest logit.
    """
    images = torch.cat([example, example[:1].flip(-1)])
    worst = 0.0
    for count in (1, 2, 4):
        expected, found = graph(images[:count]), run(images[:count])
        worst = max(worst, float((expected - found).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE:
        raise ValueError(f"the exported graph differs from the model by {worst:.2g} of the largest logit")
    return f"differs from the model by at most {worst:.1g} of the largest logit"
