"""Build of the wheel: everything becomes one package, `align_prompt`.

A checkout has the layout that users of CoOp and Dassl know: trainers/, clip/, datasets/ ... at its root. Installed,
those names would shadow other packages (`datasets` is Hugging Face's, `clip` OpenAI's), so the wheel carries them
inside `align_prompt.lib`, and their absolute imports are rewritten on the way.
"""

import ast
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ("clip", "dassl", "transport", "datasets", "trainers", "dense", "experiments", "tools")
SCRIPTS = ("train", "sweep", "report", "parse_test_res")
DATA = ("configs", "recipes")
LIB = "align_prompt.lib"
OURS = {*ROOMS, *SCRIPTS}
COMMANDS = {
    "python -m datasets.prepare": "align-prompt prepare",
    "python -m datasets.doctor": "align-prompt doctor",
    "python -m tools.": f"python -m {LIB}.tools.",
    **{f"python {name}.py": f"align-prompt {name}" for name in ("train", "sweep", "report")},
}
HERE = Path(__file__).resolve().parent


def rewrite(text: str) -> str:
    """Source code with imports of the rooms turned into imports of `align_prompt.lib`, line by line."""
    lines = text.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and (node.module or "").split(".")[0] in OURS:
                lines[first] = lines[first].replace(f"from {node.module}", f"from {LIB}.{node.module}", 1)
        elif any(alias.name.split(".")[0] in OURS for alias in node.names):
            indent = " " * node.col_offset
            lines[first:last] = [f"{indent}{_import(alias)}\n" for alias in node.names]
    text = "".join(lines)
    for command, installed in COMMANDS.items():  # in messages
        text = text.replace(command, installed)
    return text


def _import(alias: ast.alias) -> str:
    top, _, rest = alias.name.partition(".")
    if top not in OURS:
        return f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
    if alias.asname and rest:
        parent, _, leaf = alias.name.rpartition(".")
        return f"from {LIB}.{parent} import {leaf} as {alias.asname}"
    bound = f"from {LIB} import {top}" + (f" as {alias.asname}" if alias.asname else "")
    return f"import {LIB}.{alias.name}; {bound}" if rest else bound


class BuildPackage(build_py):
    """Adds the rooms, scripts, configs and recipes below align_prompt/lib, and rewrites every import."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            raise SystemExit("error: no editable install: use a checkout as it is, or install it with pip install .")
        package = Path(self.build_lib) / "align_prompt"
        lib = package / "lib"
        shutil.rmtree(lib, ignore_errors=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in (*ROOMS, *DATA):
            shutil.copytree(HERE / name, lib / name, ignore=ignore)
        for name in SCRIPTS:
            shutil.copy(HERE / f"{name}.py", lib)
        (lib / "__init__.py").write_text('"""The rooms of a checkout."""\n')
        for path in package.rglob("*.py"):
            path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")


setup(cmdclass={"build_py": BuildPackage})
