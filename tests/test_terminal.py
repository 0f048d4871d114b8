"""The terminal's raw mode, and that it is undone whenever a signal comes."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator

import pytest

from emu.terminal import raw_terminal, restore_terminal


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = os.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def is_raw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_raw_mode_lasts_as_long_as_the_block(terminal: int) -> None:
    before = termios.tcgetattr(terminal)
    with raw_terminal(terminal):
        assert is_raw(terminal)
    assert termios.tcgetattr(terminal) == before


def test_raw_mode_can_be_undone_inside(terminal: int) -> None:
    before = termios.tcgetattr(terminal)
    with raw_terminal(terminal):
        restore_terminal()
        assert termios.tcgetattr(terminal) == before
    assert termios.tcgetattr(terminal) == before


def test_signal_just_before_raw_mode_does_not_leave_it_on(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, set_raw = termios.tcgetattr(terminal), tty.setraw

    def interrupted(fd: int, when: int) -> None:
        restore_terminal()                          # what the handlers of `emu boot` do first
        set_raw(fd, when)

    monkeypatch.setattr(tty, "setraw", interrupted)
    with raw_terminal(terminal):
        assert is_raw(terminal)
    assert termios.tcgetattr(terminal) == before


def test_what_is_no_terminal_is_left_alone() -> None:
    reader, writer = os.pipe()
    with raw_terminal(reader):
        pass
    os.close(reader)
    os.close(writer)
