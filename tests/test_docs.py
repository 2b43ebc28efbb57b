"""Links, modules, scripts and programs that the pages name are there."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tracked(pattern: str) -> list[str]:
    """Files of the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name)


PAGES = tracked("*.md")
# What a reader makes, or what is a picture of a path rather than one.
MADE = ("mymethod", "my_method", "mine.", "mushrooms", "METHOD", "MyMethod")
FOLDERS = (
    "align_prompt|benchmarks|clip|dassl|datasets|dense|docs|experiments|recipes|scripts|tests|tools|trainers|transport"
)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> list[str]:
    """Names that `page` with this text has and the checkout does not have."""
    found = []
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", prose):
        if "://" in link or link.startswith("mailto:"):
            continue
        target = page.parent / link if link else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(f"{link}#{anchor}")
    for module in re.findall(r"python3? -m ([A-Za-z_]\w*(?:\.\w+)*)", text):
        path = ROOT.joinpath(*module.split("."))
        if (ROOT / module.split(".")[0]).exists() and not (
            path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        ):
            found.append(f"-m {module}")
    for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]+\.(?:sh|py|md|csv|yaml))\b", text):
        if not (ROOT / path).exists() and not any(word in path for word in MADE):
            found.append(path)
    programs = re.findall(r"^(?:\.venv/bin/)?python ([a-z_]+\.py)", text, flags=re.MULTILINE)
    return found + [name for name in programs if not (ROOT / name).exists() and not name.startswith(MADE)]


@pytest.mark.skipif(not PAGES, reason="not a checkout of git")
@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])
def test_what_a_page_names_is_there(name):
    page = ROOT / name
    assert broken(page, page.read_text()) == []


def test_wrong_names_are_found():
    block = "```\npython -m tools.gone x\nbash scripts/gone.sh\npython gone.py\n```"
    wrong = f"[a](no/such.md) [b](#nowhere) `tools/gone.py`\n{block}"
    assert broken(ROOT / "README.md", wrong) == [
        *("no/such.md#", "#nowhere", "-m tools.gone", "tools/gone.py", "scripts/gone.sh", "gone.py")
    ]
    assert (
        broken(
            ROOT / "README.md", "[a](docs/index.md) [b](#results) `python -m tools.new_method` https://x.org/docs/y.md"
        )
        == []
    )


def test_no_docstring_asks_a_question():
    wrong = []
    for name in tracked("*.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if text.partition(" ")[0] in {"What", "Whether", "Where", "How", "Which", "Why"}:
                    wrong.append(f"{name}: {text.splitlines()[0]}")
    assert tracked("*.py")
    assert not wrong
