"""The documentation site builds without a broken link, and its pages show what they should."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.docs_site import on_page_content, on_page_markdown

ROOT = Path(__file__).parents[1]


def page(name):
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


def test_links_out_of_the_pages_lead_to_the_repository(monkeypatch):
    text = "[a](../../trainers/align.py#x) [b](coop.md#y) [c](../../README.md) `[d](e)`\n```\n[f](../gone.py)\n```"
    monkeypatch.setenv("REPOSITORY", "https://example.org/r/")
    shown = on_page_markdown(text.replace("`[d](e)`", ""), page("methods/align.md"))
    assert "[a](https://example.org/r/blob/main/trainers/align.py#x) [b](coop.md#y) [c](../index.md)" in shown
    assert "[f](../gone.py)" in shown  # of a code block
    monkeypatch.delenv("REPOSITORY")
    assert on_page_markdown("see [a](../trainers/align.py).", page("faq.md")) == "see a."
    with pytest.raises(ValueError, match="which is not there"):
        on_page_markdown("[a](../gone.py)", page("faq.md"))


def test_equations_become_mathml():
    shown = on_page_content(r'<p><span class="arithmatex">\(a &lt; \hat C_{jl}\)</span></p>')
    assert shown.startswith("<p><math")
    assert "arithmatex" not in shown
    with pytest.raises(ValueError, match=r"\\nosuch of .* has no MathML"):
        on_page_content(r'<span class="arithmatex">\(\nosuch x\)</span>')
    assert "&#x0003C;" in shown or "&lt;" in shown


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "REPOSITORY": "https://example.org/repository", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not included in the" not in done.stderr  # every page is in the menu
    align = (tmp_path / "site" / "methods" / "align.html").read_text()
    assert align.count("<math") > 10
    assert r"\langle" not in align
    api = (tmp_path / "site" / "api.html").read_text()
    assert all(f'id="align_prompt.api.{name}"' in api for name in ("load", "fit", "methods", "datasets", "backbones"))
    assert "从这里开始" in (tmp_path / "site" / "index.zh.html").read_text()
    elsewhere = r'(?:src|href)="https?://(?!example)[^"]*\.(?:js|css|woff2?)'
    assert not re.findall(elsewhere, align)
