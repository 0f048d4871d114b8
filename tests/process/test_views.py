"""Views of a machine's console, and its size: what is sent, what is left out, and when the agent is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emu.process import messages as m
from emu.process.views import REPLAY, Size, View, Views
from tests.process.fake_machine import FakeMachine, Program


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine({})


def sent(machine: FakeMachine) -> tuple[Views, list[tuple[int, Any, bytes]]]:
    """Views, and the replies that they send."""
    replies: list[tuple[int, Any, bytes]] = []
    return Views(machine, lambda *reply: replies.append(reply)), replies       # type: ignore[arg-type]


def test_a_view_begins_with_what_was_on_the_console(machine: FakeMachine) -> None:
    machine.console.feed(b"before ")
    view = View(machine)                        # type: ignore[arg-type]
    machine.console.feed(b"after")
    assert view.next() == (0, b"before after")
    assert not view.is_due
    machine.console.feed(b"more")
    assert view.next() == (12, b"more")


def test_who_takes_nothing_gets_no_more_and_then_the_end(machine: FakeMachine) -> None:
    view, total = View(machine), 0              # type: ignore[arg-type]
    while total < m.AHEAD:
        machine.console.feed(bytes(100_000))
        total += len(view.next()[1])
    for _ in range(50):
        machine.console.feed(b"x" * 100_000)
    assert not view.is_due
    view.took(total)
    position, data = view.next()
    assert REPLAY <= len(data) <= m.AHEAD and data.endswith(b"x") and position + len(data) == total + 5_000_000


def test_all_views_get_all_until_they_are_cancelled(machine: FakeMachine) -> None:
    views, replies = sent(machine)
    views.add(1)
    views.add(2)
    machine.console.feed(b"for both")
    assert views.is_due
    views.send()
    assert replies == [(1, m.Shown(0), b"for both"), (2, m.Shown(0), b"for both")]
    views.cancel(1)
    views.cancel(77)
    machine.console.feed(b"for one")
    views.send()
    assert replies[2:] == [(2, m.Shown(8), b"for one")]


def test_at_the_machines_end_a_view_ends_when_all_is_shown(machine: FakeMachine) -> None:
    views, replies = sent(machine)
    views.add(1)
    machine.console.feed(b"last words")
    machine.stop("the guest powered off")
    assert views.is_due
    views.send()
    assert replies == [(1, m.Shown(0), b"last words"), (1, m.Done("the guest powered off"), b"")]
    assert not views.is_due


def test_a_copy_of_the_process_has_no_views(machine: FakeMachine) -> None:
    views, replies = sent(machine)
    views.add(1)
    machine.console.forked()
    views.clear()
    machine.console.feed(b"of the child")
    views.send()
    assert replies == [] and not views.is_due


def stty(sizes: list[str]) -> Program:
    def program(running: Any) -> Any:
        sizes.append(running.text)
        yield

    return program


def drive(machine: FakeMachine, size: Size, until: Callable[[], bool]) -> None:
    for _ in range(100):
        if until():
            return
        size.tell()
        machine._step()
    raise AssertionError("never")


def test_over_a_serial_line_the_agent_is_told_each_size_once() -> None:
    told: list[str] = []
    machine = FakeMachine({"stty": stty(told)})
    size = Size(machine)                        # type: ignore[arg-type]
    assert not size.is_due
    size.set(80, 25)
    assert size.is_due
    drive(machine, size, lambda: len(told) == 1)
    size.set(80, 25)
    assert not size.is_due
    size.set(100, 30)
    drive(machine, size, lambda: len(told) == 2)
    assert ["cols 80 rows 25" in told[0], "cols 100 rows 30" in told[1]] == [True, True]


def test_an_agent_that_comes_later_is_told_then_and_after_each_boot() -> None:
    told: list[str] = []
    machine = FakeMachine({"stty": stty(told)})
    size = Size(machine)                        # type: ignore[arg-type]
    machine.ports[0].set_open(False)
    size.set(80, 25)
    assert not size.is_due
    for boot in (1, 2):
        machine.ports[0].set_open(True)
        machine.ports[0].say(b"hello 1\n")
        drive(machine, size, lambda boot=boot: len(told) == boot)       # type: ignore[misc]
        machine._step()
        machine.ports[0].set_open(False)
        assert not size.is_due


@pytest.mark.parametrize("columns, rows", [(0, 25), (80, -1), (1001, 25), (80, 1 << 40)])
def test_no_console_is_so_large(machine: FakeMachine, columns: int, rows: int) -> None:
    with pytest.raises(ValueError, match="characters large"):
        Size(machine).set(columns, rows)        # type: ignore[arg-type]
