"""Flags of `python -m datasets.prepare`, apart from what it does, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
examples:
  python -m datasets.prepare --list                    what there is; --list EuroSAT shows one
  python -m datasets.prepare EuroSAT dtd --root data   about 0.7 GB, to data/eurosat and data/dtd
  python -m datasets.doctor EuroSAT dtd --root data    look it over
The mirror on the Hugging Face Hub comes first where huggingface_hub is installed; HF_ENDPOINT names another host.
exit code: 0 all there, 1 something is missing (the message says what to do), 2 wrong arguments

Custom images need none of this: DATASET.NAME folder, see docs/datasets.md.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Fetch, check and unpack data sets of the papers. What is there already is left as it is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="such as EuroSAT or eurosat, see --list; all: all but ImageNet"
    )
    parser.add_argument("--root", metavar="DATA", help="folder that holds all data sets, made if it is not there")
    parser.add_argument(
        "--offline", metavar="DIR", type=Path, help="take files from DIR, under their original names; download nothing"
    )
    parser.add_argument("--list", action="store_true", help="show sizes, licences, addresses and what to do by hand")
    parser.add_argument("--make-split", action="store_true", help="make your own split: NOT the published one")
    parser.add_argument(
        "--no-mirror", action="store_true", help="ask the publishers only, not the mirror on the Hugging Face Hub first"
    )
    parser.add_argument("--keep", action="store_true", help="keep archives after unpacking, in DATA/<folder>/.prepare")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser
