"""`export`: a trained model as a bundle, a classifier matrix, ONNX, torch.export, or a folder for the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

# Format -> ending of the file ("" for a folder), and what it is.
FORMATS = {
    "bundle": (".safetensors", "everything prediction needs in one file, the backbone named or inside"),
    "classifier": (".npz", "matrix of classes x features, of methods that leave the image tower as it is"),
    "onnx": (".onnx", "graph from a preprocessed picture to logits, checked with onnxruntime"),
    "torch": (".pt2", "the same graph of torch.export"),
    "hub": ("", "folder in the layout of the Hugging Face Hub, not uploaded"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "formats:\n" + "\n".join(f"  {name:<11} {text}" for name, (_, text) in FORMATS.items())
    parser.add_argument("model", metavar="RUN", help="finished run, checkpoint, bundle, or name of a CLIP")
    parser.add_argument("output", metavar="FILE", help="what to write; its ending tells the format, a folder is hub")
    parser.add_argument("--format", choices=FORMATS, help="where the ending does not tell")
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="other classes than those of training")
    parser.add_argument("--backbone-inside", action="store_true", help="bundle, hub: with the weights of the CLIP")
    parser.add_argument("--no-features", action="store_true", help="bundle, hub: without the encoded classes")
    parser.add_argument("--import", dest="imports", metavar="MODULE", action="append", default=[], help="of train.py")


def format_of(path: Path) -> str:
    """The format that a path's ending stands for.

    Raises:
        ValueError: an ending that is none of a format.
    """
    for name, (ending, _) in FORMATS.items():
        if path.suffix == ending:
            return name
    endings = ", ".join(ending or "none (a folder)" for ending, _ in FORMATS.values())
    raise ValueError(f'"{path}" ends in {path.suffix}, expected {endings}, or give --format')


def run(args: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    path = Path(args.output)
    kind = args.format or format_of(path)
    if (args.backbone_inside or args.no_features) and kind not in ("bundle", "hub"):
        raise ValueError(f"--backbone-inside and --no-features are of bundle and hub, not of {kind}")
    import align_prompt

    model = align_prompt.load(args.model, args.classes, "cpu", args.imports)
    path.parent.mkdir(parents=True, exist_ok=True)
    inside, features = args.backbone_inside, not args.no_features
    if kind == "bundle":
        from align_prompt.bundle import write_bundle

        said = write_bundle(model, path, inside, features)
    elif kind == "hub":
        from align_prompt.export.hub import write_folder

        said = write_folder(model, path, inside, features)
    elif kind == "classifier":
        from align_prompt.export.classifier import write_classifier

        said = write_classifier(model, path)
    else:
        from align_prompt.export.graph import write_onnx, write_program

        said = (write_onnx if kind == "onnx" else write_program)(model, path)
    print(f"{path}: {said}")
    return 0
