"""Every block of README and docs/ does what it says."""

from __future__ import annotations

import configparser
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, Block, blocks
from tests.docs.desk import Desk

RUN = "python", "console"
ELSEWHERE = {                           # languages of blocks that other tests compile and run, by page
    "docs/hypercalls.md": ("c", "asm"),         # tests/hypercalls/test_documentation.py
    "docs/multiboot.md": ("asm",),              # here: it is a file
}
MOST_NOT_RUN = 12


def named(page: Path) -> str:
    """A page's name from the top directory."""
    return str(page.relative_to(ROOT))


ALL = [block for page in PAGES for block in blocks(page)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A directory for a page's blocks."""
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.mark.integration
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=named)
def test_the_blocks_of_a_page(page: Path, desk: Desk) -> None:
    for block in blocks(page):
        if block.language in RUN or block.file:
            desk.run(block)


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.place)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    page = block.place.partition(":")[0]
    known = block.language in RUN or block.language == "text" or block.language in ELSEWHERE.get(page, ())
    if block.language == "toml":
        tomllib.loads(block.content)
    elif block.language == "yaml":
        assert pytest.importorskip("yaml").safe_load(block.content)
    elif block.language == "ini":
        configparser.ConfigParser(allow_no_value=True).read_string(block.content)
    else:
        assert known, f"{block.place}: nobody runs {block.language or 'a block without a language'}"


def test_few_blocks_are_not_run() -> None:
    assert len([block for block in ALL if block.reason]) <= MOST_NOT_RUN
