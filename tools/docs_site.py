"""Hooks of the documentation site (mkdocs.yml): the pages are written for a checkout and stay as they are there.

Links to files outside docs/ lead to the repository if $REPOSITORY names its address, else they become plain text.
Equations become MathML, which browsers show without scripts.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "README.zh.md": "index.zh.md"}  # pages of the site that stand for files outside docs/
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
MATH = re.compile(r'<(span|div) class="arithmatex">(\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links that lead out of docs/ rewritten."""
    folder = PurePosixPath("docs", page.file.src_uri).parent
    repository = os.environ.get("REPOSITORY", "").rstrip("/")

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = os.path.normpath(folder / target)
        if path in PAGES:
            up = os.path.relpath(f"docs/{PAGES[path]}", folder)
            return f"[{text}]({up})"
        if path.startswith("docs/") and not path.endswith(".ipynb"):
            return found[0]
        if not (ROOT / path).exists():
            raise ValueError(f"{page.file.src_uri} links to {target}, which is not there")
        return f"[{text}]({repository}/blob/main/{path}{anchor})" if repository else text

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def on_page_content(content: str, **_: Any) -> str:
    """The page's HTML with equations as MathML."""

    def math(found: re.Match[str]) -> str:
        latex = html.unescape(found[3].strip()).replace(r"\arg", r"\operatorname{arg}")
        shown = convert(latex, display="inline" if found[2] == "\\(" else "block")
        if unknown := re.search(r">\s*(\\[a-zA-Z]+)", shown):
            raise ValueError(f"{unknown[1]} of ${latex}$ has no MathML; write it another way")
        return shown

    return MATH.sub(math, content)
