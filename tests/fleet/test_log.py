"""The log of a test."""

from __future__ import annotations

import threading

import pytest

from emu.fleet.log import Entry, Log, printable


def test_a_line_has_time_depth_machine_and_text() -> None:
    assert str(Entry(1.234, 0, "", "subtest: x")) == "    1.23  subtest: x"
    assert str(Entry(1234.5, 2, "server", "start")) == " 1234.50      server: start"


def test_sections_nest_and_say_how_they_ended() -> None:
    lines: list[str] = []
    log = Log(lines.append)
    with pytest.raises(KeyError), log.section("outer"):
        with log.section("inner", "server"):
            log.note("inside")
        raise KeyError
    log.note("after")
    assert [(entry.depth, entry.machine, entry.text.split(" in ")[0]) for entry in log.entries] == [
        (0, "", "outer"), (1, "server", "inner"), (2, "", "inside"), (2, "server", "done"), (1, "", "failed"),
        (0, "", "after"),
    ]  # fmt: skip
    assert lines == [str(entry) for entry in log.entries]
    assert [entry.seconds for entry in log.entries] == sorted(entry.seconds for entry in log.entries)


def test_nothing_is_added_behind_the_end() -> None:
    lines: list[str] = []
    log = Log(lines.append)
    with log.section("cut off"):
        log.close()
    assert len(lines) == len(log.entries) == 1


def test_lines_of_threads_are_whole_and_in_order() -> None:
    lines: list[str] = []
    log = Log(lines.append)
    threads = [threading.Thread(target=lambda: [log.note("x" * 50) for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines == [str(entry) for entry in log.entries] and len(lines) == 400


def test_a_guest_cannot_write_to_the_terminal() -> None:
    assert printable("a\x1b[31m\nb\tc é\u202e") == "a\\x1b[31m\\nb\\tc é\\u202e"
