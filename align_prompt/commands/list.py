"""`list`: names of what there is."""

from __future__ import annotations

import argparse

from align_prompt.registries import KINDS, listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("kind", choices=KINDS, help="what to list")


def run(args: argparse.Namespace) -> int:
    """Print one name per line."""
    print("\n".join(listed(args.kind)))
    return 0
