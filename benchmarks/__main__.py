"""`python -m benchmarks NAME [options]`: measures one thing and prints it; `plot` draws what others printed."""

import argparse
import ast
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

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
    named = any(not word.startswith("-") for word in sys.argv[1:])
    modules: dict[str, Any] = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES if named}
    for name in NAMES:  # torch is imported only when one of them is named
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source)) or ""
        own = choices.add_parser(name, help=text.split("\n", 1)[0], description=text)
        if named:
            modules[name].add_arguments(own)
    arguments = parser.parse_args()
    logging.getLogger("transport.sinkhorn").setLevel(logging.ERROR)  # some ask for more than can converge
    modules[arguments.name].run(arguments)


if __name__ == "__main__":
    main()
