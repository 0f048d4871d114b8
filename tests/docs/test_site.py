"""The site, its pictures, and what the pages promise of themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.terminal import Line, Step, drawn, record
from tests.docs.blocks import PAGES, ROOT, blocks

PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
LINK = re.compile(r"\]\(([^)#\s]+)")
LARGEST_PICTURE = 100_000              # bytes
TIMEOUT_S = 250


def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    for name in "sphinx", "myst_parser", "furo", "sphinx_click":
        pytest.importorskip(name, reason="the site's generator is not installed: pip install 'pvemu[docs]'")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    fetched = re.compile(r"""<(?:link|script|img)[^>]*(?:href|src)=["'](?:https?:)?//|@import|url\(["']?https?:""")
    pages = [*tmp_path.glob("*.html"), *tmp_path.glob("_static/**/*.css")]
    assert len(pages) > len(PAGES) - 2
    for page in pages:
        assert not fetched.search(page.read_text(encoding="utf-8")), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_trap_is_on_its_page_in_its_own_words() -> None:
    text = (ROOT / "docs/traps.md").read_text()
    shown = re.findall(r"^```\{literalinclude\} traps/(\w+\.py)$", text, re.MULTILINE)
    typed = re.findall(r"^\$ python docs/traps/(\w+\.py)$", text, re.MULTILINE)
    there = sorted((ROOT / "docs/traps").glob("*.py"))
    assert sorted(shown) == sorted(typed) == [path.name for path in there]
    for path in there:
        words = ast.get_docstring(ast.parse(path.read_text()))
        assert f"{words}\n\n```{{literalinclude}} traps/{path.name}\n" in text


def test_the_tutorial_s_hypercall_is_as_short_as_it_says() -> None:
    files = {block.file: block.content.splitlines() for block in blocks(ROOT / "docs/tutorial.md")}
    assert len([line for line in files["my_hypercalls.py"] if line]) <= 15
    assert len([line for line in files["test_my_hypercalls.py"] if line]) <= 10


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_text_and_ask_nobody(picture: Path) -> None:
    content = picture.read_text(encoding="utf-8")
    ElementTree.fromstring(content)
    assert len(content) < LARGEST_PICTURE
    assert not re.search(r"(?:href|src)=[\"']https?:|@import|url\([\"']?https?:|<script", content)


def test_a_session_is_recorded_line_by_line() -> None:
    lines = record([Step("echo one; printf 'name? '; read -r name; echo hello $name", (("name[?] $", "world"),))])
    assert [line.text for line in lines[1:]] == ["one", "name? world", "hello world", "$ "]
    assert all(before.seconds <= after.seconds for before, after in pairwise(lines))


def test_a_drawn_session_is_an_svg_of_its_lines() -> None:
    tree = ElementTree.fromstring(drawn([Line("$ echo '<&>'", 0.5), Line("<&>", 1.25)]))
    texts = [element for element in tree.iter() if element.tag.endswith("}text")]
    assert [element.text for element in texts] == ["$ echo '<&>'", "<&>"]
    assert [element.get("style") for element in texts] == ["animation-delay:0.50s", "animation-delay:1.25s"]
