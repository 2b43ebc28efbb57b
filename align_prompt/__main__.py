"""The program: `python -m align_prompt COMMAND`, or `align-prompt COMMAND` where the package is installed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import align_prompt

# Command -> what it does. Each is a module of align_prompt.commands with add_arguments(parser) and run(args) -> exit
# code, and is imported when it is called, so that --help is quick.
COMMANDS = {
    "predict": "name the classes of pictures with a trained model",
    "explain": "show what a trained model does, in pictures",
    "demo": "try a trained model on a local page in the browser",
    "export": "write a trained model for use elsewhere: a bundle, ONNX, ...",
    "list": "what there is: methods, data sets, backbones, configs, recipes",
    "completion": "script for a shell that completes commands, flags and names",
}
# Commands of a checkout, under one name; their arguments are their own.
PROGRAMS = {
    "train": "one run: train.py",
    "sweep": "all runs of recipes: sweep.py",
    "report": "tables and figures of a recipe: report.py",
    "prepare": "fetch, check and unpack data sets",
    "doctor": "look over data sets, and pictures of your own",
}
EXPECTED = (ValueError, KeyError, OSError, ImportError, RuntimeError)  # bad input, a full disk, too little memory


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of `command` alone."""
    parser = argparse.ArgumentParser(prog="align-prompt", description="Prompt learning for CLIP.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {align_prompt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in PROGRAMS.items():
        commands.add_parser(name, help=text, add_help=False)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            importlib.import_module(f"align_prompt.commands.{name}").add_arguments(sub)
            sub.add_argument("--verbose-errors", action="store_true", help="show the traceback of every error")
    return parser


def _program(name: str, argv: list[str]) -> int:
    """Run a command of a checkout as if it had been called by its own name; returns the exit code."""
    sys.argv = [f"align-prompt {name}", *argv]
    if name == "train":
        import train

        train.start(argv)
        return 0
    if name == "sweep":
        from experiments.sweeps.flags import parse

        parse(argv)
        from experiments.sweeps import command

        return command.main(argv)
    if name == "report":
        from experiments.reports.flags import build_parser

        build_parser().parse_args(argv)
        from experiments.reports import command as report

        return report.main(argv)
    if name == "prepare":
        from datasets.prepare.flags import build_parser

        build_parser().parse_args(argv)
        from datasets.prepare.command import main

        return main(argv)
    from datasets import doctor

    return doctor.main(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line `error: ...` on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    if command in PROGRAMS and argv[0] == command:
        return _program(command, argv[1:])
    args = build_parser(command).parse_args(argv)
    try:
        code = importlib.import_module(f"align_prompt.commands.{args.command}").run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EXPECTED as err:
        if args.verbose_errors:
            raise
        from dassl.utils.errors import error_line

        print(f"error: {error_line(err)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
