"""Wires that branch and join."""

from __future__ import annotations

from emu.wires import Branch, Junction
from tests.devices.fakes import FakeLine


def test_a_branch_drives_every_input() -> None:
    pic, ioapic = FakeLine(), FakeLine()
    branch = Branch(pic, ioapic)
    branch.set(True)
    assert (pic.level, ioapic.level) == (True, True)
    branch.set(False)
    assert (pic.level, ioapic.level) == (False, False)


def test_a_junction_is_high_while_any_of_its_wires_is() -> None:
    line = FakeLine()
    junction = Junction(line)
    first, second = junction.wire(), junction.wire()
    first.set(True)
    second.set(True)
    first.set(False)
    assert line.level
    second.set(False)
    assert not line.level
    assert line.changes == [True, False]
