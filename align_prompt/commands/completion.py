"""`completion`: a script by which bash, zsh or tcsh completes commands, flags and names of this program."""

from __future__ import annotations

import argparse
import importlib

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("shell", choices=SHELLS, help="your shell")
    parser.epilog = "bash: align-prompt completion bash > ~/.local/share/bash-completion/completions/align-prompt"


def full_parser() -> argparse.ArgumentParser:
    """The program's parser with the arguments of every command, and names as choices where there are few enough."""
    from align_prompt.__main__ import COMMANDS, PROGRAMS
    from align_prompt.registries import config_names, listed
    from dassl.config import flags as train
    from datasets.prepare.catalog import CATALOG
    from experiments.reports import flags as report
    from experiments.sweeps import flags as sweep

    parser = argparse.ArgumentParser(prog="align-prompt")
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers(dest="command")
    own = {"train": train.build_parser(), "sweep": sweep.build_parser(), "report": report.build_parser()}
    for name, text in PROGRAMS.items():
        if name in own:
            commands.add_parser(name, help=text, parents=[own[name]], add_help=False)
        else:
            sub = commands.add_parser(name, help=text)
            sub.add_argument("names", nargs="*", choices=sorted(CATALOG))
            sub.add_argument("--root")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text)
        importlib.import_module(f"align_prompt.commands.{name}").add_arguments(sub)
    names = {
        "trainer": listed("methods"),
        "backbone": listed("backbones"),
        "dataset_config_file": config_names("datasets"),
        "recipes": listed("recipes"),
        "recipe": listed("recipes"),
    }
    for action in (action for program in own.values() for action in program._actions):
        action.choices = names.get(action.dest, action.choices)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise ImportError("completion needs the package shtab: pip install shtab") from None
    print(shtab.complete(full_parser(), shell=args.shell))
    return 0
