"""`python -m benchmarks NAME [options]`: measures one thing and prints it; `plot` draws what others printed."""

import argparse
import ast
import importlib
import logging
import sys
from pathlib import Path

NAMES = (
    "align_step",
    "dense_step",
    "feature_cache",
    "gpu",
    "loader",
    "memory",
    "methods",
    "plot",
    "shots",
    "sinkhorn",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = parser.add_subparsers(dest="name", required=True)
    given = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for name in NAMES:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source)) or ""
        own = choices.add_parser(name, help=text.split("\n", 1)[0], description=text)
        if name == given:  # only this one is imported, and torch with it
            chosen = importlib.import_module(f"benchmarks.{name}")
            chosen.add_arguments(own)
    arguments = parser.parse_args()
    logging.getLogger("transport.sinkhorn").setLevel(logging.ERROR)  # some ask for more than can converge
    chosen.run(arguments)


if __name__ == "__main__":
    main()
