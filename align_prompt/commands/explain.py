"""`explain`: pictures of what a trained method does with a picture, and with its test set, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", metavar="RUN", help="folder of a finished run, checkpoint, bundle, or name of a CLIP")
    parser.add_argument("pictures", metavar="PICTURE", nargs="*", help="files, folders or quoted patterns")
    parser.add_argument("--class", dest="name", metavar="NAME", help="class to explain (default: the predicted one)")
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="other classes than those of training")
    parser.add_argument("--data", metavar="DIR", help="folder of data sets: look at the run's test set, too")
    parser.add_argument(
        "--projection", metavar="NAME", choices=("tsne", "umap"), nargs="+", default=["tsne"], help="of --data"
    )
    parser.add_argument("--by-epoch", action="store_true", help="also the plans at every checkpoint the run kept")
    parser.add_argument("--output", metavar="DIR", default="explained", help="folder to write (default: explained)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--import", dest="imports", metavar="MODULE", action="append", default=[], help="of train.py")


def run(args: argparse.Namespace) -> int:
    """Write the files and say where."""
    if not args.pictures and args.data is None:
        raise ValueError("nothing to explain is given: name pictures, or --data with the folder of the data sets")
    import align_prompt
    from align_prompt.commands.predict import found_pictures
    from align_prompt.explain import sections
    from align_prompt.explain.epochs import epochs_section, kept_epochs
    from align_prompt.explain.mistakes import check_projections
    from align_prompt.explain.page import Section, write_files

    check_projections(args.projection)
    paths = list(found_pictures(args.pictures))
    model = align_prompt.load(args.model, args.classes, args.device, args.imports)
    model.prompted  # noqa: B018 - says that the method has none
    if args.by_epoch:
        kept_epochs(model)
    place = None if args.name is None else sections.place_of(model, args.name)
    parts: list[Section | None] = []
    for number, path in enumerate(paths, start=1):
        parts.append(sections.picture_section(model, number, path, args.name))
        if args.by_epoch:
            parts.append(epochs_section(model, number, path, args.name))
    parts.append(sections.words_section(model, place or 0))
    if args.data is not None:
        parts.append(sections.data_section(model, args.data, args.projection))
    text = f"{model.backbone_title}, {len(model.classnames)} classes, from {args.model}."
    page = write_files(Path(args.output), f"{model.method} explained", text, [part for part in parts if part])
    print(f"{page} and {sum(len(part.figures) for part in parts if part)} pictures are written")
    return 0
