"""Pictures of exit statistics; what they look like is for people to judge."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emu.accounting import Tally
from emu.errors import EmuError
from emu.picture import MOST_ROWS, SUFFIXES, check_picture, draw
from emu.stats import ExitRow, ExitStats, Kind


def stats(handlers: int, name: str = "virtio-9p") -> ExitStats:
    """Statistics with that many handlers, and a few rows without times."""
    rows = [ExitRow(Kind.NATIVE, "syscall", 100), ExitRow(Kind.PORT_IN, "unclaimed", 3)]
    for number in range(handlers):
        tally = Tally(Kind.MMIO_WRITE, f"{name} slot {number}")
        tally.count = 2
        tally.add(1000 << number)
        tally.add(5)
        rows.append(tally.row())
    return ExitStats(tuple(rows), 10**9, 10**8, 10**8, True)


def texts(path: Path) -> list[str]:
    """The comments of an SVG picture, where matplotlib keeps each text it has drawn as outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return [str(element.text).strip() for element in tree.iter() if element.tag is ElementTree.Comment]


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_name_says_the_format(suffix: str, begins: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"exits{suffix}"
    draw(path, "alpine", [("boot", stats(3)), ("true", stats(0))])
    assert path.read_bytes().startswith(begins)


def test_guest_command_parts_and_handlers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "exits.svg"
    draw(path, "alpine, kernel generic", [("boot", stats(1)), ("cat $HOME/x_$", stats(2))])
    shown = texts(path)
    assert {"alpine, kernel generic", "boot: 1,000.0 ms", "cat $HOME/x_$: 1,000.0 ms", "2 ×", "p99"} <= set(shown)
    assert shown.count("mmio write  virtio-9p slot 0") == 2 and shown.count("mmio write  virtio-9p slot 1") == 1
    assert "idle 10.0%" in shown


def test_handlers_that_are_too_many_share_a_bar(tmp_path: Path) -> None:
    path = tmp_path / "exits.svg"
    draw(path, "alpine", [("boot", stats(MOST_ROWS + 5))])
    bars = [text for text in texts(path) if text.startswith("mmio write") or text.endswith("others")]
    assert len(bars) == MOST_ROWS and bars[-1] == "6 others"
    assert "12 ×" in texts(path)


def test_titles_and_names_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "exits.svg"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                 # a font may lack what a command has
        draw(path, r"$\frac$" + "x" * 5000, [("\x1b[31m\udcff\n--> $\\frac$ é 中", stats(1, r"$\frac$"))])
    assert any(text.startswith(r"$\frac$xxx") and len(text) < 110 for text in texts(path))


@pytest.mark.parametrize("name", ["exits.pdf", "exits", "png"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(EmuError, match=rf"{name}: a picture's name ends in {SUFFIXES[0]} or {SUFFIXES[1]}"):
        check_picture(Path(name))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EmuError, match=r"pip install 'pvemu\[plot\]'"):
        check_picture(Path("exits.png"))
