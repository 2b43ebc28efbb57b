"""`demo`: a local page to try a model in the browser."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", metavar="RUN", help="folder of a finished run, checkpoint, bundle, or name of a CLIP")
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="other classes than those of training")
    parser.add_argument("--top", metavar="K", type=int, default=5, help="classes that are shown (default 5)")
    parser.add_argument("--port", metavar="N", type=int, help="of the page (default: the first free one from 7860 on)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--import", dest="imports", metavar="MODULE", action="append", default=[], help="of train.py")


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    if args.top < 1:
        raise ValueError(f"--top is {args.top}, expected at least 1")
    import align_prompt
    from align_prompt.demo import build_page, open_page

    open_page(build_page(align_prompt.load(args.model, args.classes, args.device, args.imports), args.top), args.port)
    return 0
