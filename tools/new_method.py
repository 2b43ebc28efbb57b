"""Start your own method: python -m tools.new_method NAME [--node NODE].

Copies the trainer, the config for the small embedded CLIP and the test in example_method/, which work as they are; then
make them yours as docs/add_a_method.md shows.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

import trainers  # noqa: F401 - its methods are registered at the first look-up
from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = Path(__file__).parent / "example_method"


def check_names(name: str, node: str) -> None:
    """Check that a method and its config section may be called so.

    Raises:
        ValueError: a name is not an identifier, or taken.
    """
    pattern = r"[A-Za-z][A-Za-z0-9_]*"
    if not re.fullmatch(pattern, name) or keyword.iskeyword(name) or keyword.iskeyword(name.lower()):
        raise ValueError(f"the name of a method is {name!r}, expected a Python identifier such as MyMethod")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", node) or node == "NAME":
        raise ValueError(f"--node is {node!r}, expected capital letters, digits and _ such as MYMETHOD, and not NAME")
    for known in TRAINER_REGISTRY.registered_names():
        if known.lower() == name.lower():
            raise ValueError(f"there is a trainer {known} already; choose another name than {name}")
        defaults = getattr(TRAINER_REGISTRY.get(known), "defaults", None)
        if defaults is not None and node in defaults():
            raise ValueError(f"TRAINER.{node} is the section of {known} already; choose another with --node")


def create(name: str, node: str | None, root: Path) -> list[Path]:
    """Write the three files of a new method below `root`, all or none.

    Args:
        name: of the trainer class, as in --trainer NAME.
        node: of its config section below TRAINER; the name in capitals when None.
        root: of a checkout of this project.

    Returns:
        The files written: trainer, config, test.

    Raises:
        ValueError: a name is not an identifier or taken, or `root` is not a checkout.
        FileExistsError: one of the files exists, or a test file of that name elsewhere.
    """
    node = name.upper() if node is None else node
    check_names(name, node)
    module = name.lower()
    if not (root / "trainers" / "base.py").is_file() or not (root / "tests" / "trainers").is_dir():
        raise ValueError(f"{root} is not a checkout of this project: it needs trainers/ and tests/trainers/")
    contents = {
        root / "trainers" / f"{module}.py": "trainer.py.txt",
        root / "configs" / "trainers" / name / "emoji.yaml": "config.yaml.txt",
        root / "tests" / "trainers" / f"test_{module}.py": "test.py.txt",
    }
    same_test = sorted((root / "tests").rglob(f"test_{module}.py"))  # pytest needs different names
    shared = sorted((root / "trainers").rglob(f"{module}.py"))
    taken = [path for path in contents if path.exists()] + shared + same_test
    if taken:
        raise FileExistsError(f"{taken[0].relative_to(root)} exists already and is left as it is; choose another name")
    imports = sorted(["from trainers.base import PromptedCLIP", f"from trainers.{module} import {name}"])
    for path, example in contents.items():
        template = Template((EXAMPLE / example).read_text(encoding="utf-8"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template.substitute(name=name, node=node, imports="\n".join(imports)))
    return list(contents)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.new_method",
        description="Write the trainer, the config and the test of a new method; nothing is overwritten.",
        epilog="What to do next: docs/add_a_method.md",
    )
    parser.add_argument("name", metavar="NAME", help="of the method, such as MyMethod")
    parser.add_argument("--node", metavar="NODE", help="its section below TRAINER (default: NAME in capitals)")
    args = parser.parse_args(argv)
    try:
        files = create(args.name, args.node, ROOT)
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    for file in files:
        print(f"written: {file.relative_to(ROOT)}")
    print(f"""
It works as it is:
  bash scripts/run.sh {args.name} emoji emoji_groups 1 DATASET.NUM_SHOTS 16
  bash scripts/test.sh tests/trainers/{files[2].name} tests/test_trainers.py -k {args.name.lower()}
docs/add_a_method.md says how to make it yours.""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
