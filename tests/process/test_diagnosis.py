"""What a machine's process tells of it when something is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from emu.errors import EmuError
from emu.process.diagnosis import KEPT, RecentLog, diagnose


@pytest.fixture
def recent() -> Iterator[RecentLog]:
    """A log that keeps what comes during the test."""
    level = logging.getLogger("emu").level
    recent = RecentLog()
    recent.begin()
    yield recent
    logging.root.removeHandler(recent)
    logging.getLogger("emu").setLevel(level)


class Machine:
    """Stands for one that runs and has everything, unless told otherwise."""

    def __init__(self, **differences: Any) -> None:
        self.stop_detail = ""
        self.panic = None
        self.channel: Any = SimpleNamespace(alive=True)
        self.vsock: Any = SimpleNamespace(missing=lambda: "")
        vars(self).update(differences)


def test_a_machine_that_is_well() -> None:
    found = diagnose(Machine())  # type: ignore[arg-type]
    assert (found.stopped, found.panic, found.agent, found.sockets) == ("", "", "", "")


def test_what_is_missing_and_why() -> None:
    missing = SimpleNamespace(alive=False, missing=lambda: "its port is closed")
    machine = Machine(
        stop_detail="powered off", panic="Kernel panic", channel=missing,
        vsock=SimpleNamespace(missing=lambda: "no driver"),
    )  # fmt: skip
    found = diagnose(machine)  # type: ignore[arg-type]
    assert (found.stopped, found.panic) == ("powered off", "Kernel panic")
    assert (found.agent, found.sockets) == ("its port is closed", "no driver")


def test_a_machine_without_channel_and_sockets() -> None:
    class Bare(Machine):
        @property
        def vsock(self) -> Any:
            raise EmuError("no vsock device")

        @vsock.setter
        def vsock(self, _value: Any) -> None:
            pass

    found = diagnose(Bare(channel=None))  # type: ignore[arg-type]
    assert (found.agent, found.sockets) == ("the machine was made without a channel", "no vsock device")


def test_the_end_of_the_log_is_kept_with_its_age(recent: RecentLog, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("emu.vsock").debug("too much")
    for number in range(2 * KEPT):
        logging.getLogger("emu.vsock").info("line %d", number)
    lines = recent.lines()
    assert [line.text for line in lines] == [f"line {number}" for number in range(KEPT, 2 * KEPT)]
    assert all(line.age_ms >= 0 for line in lines)
    assert capsys.readouterr().err == ""
    recent.begin()
    assert recent.lines() == ()
    assert logging.root.handlers.count(recent) == 1


def test_warnings_are_shown_as_well(
    recent: RecentLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [recent])     # without pytest's
    logging.getLogger("devices.virtio").warning("odd")
    assert capsys.readouterr().err == "odd\n"
    assert [line.text for line in recent.lines()] == ["odd"]


def test_warnings_that_another_handler_shows_are_not_shown(
    recent: RecentLog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(logging.root.handlers) > 1                       # pytest's
    logging.getLogger("devices.virtio").warning("odd")
    assert capsys.readouterr().err == ""
    assert [line.text for line in recent.lines()] == ["odd"]
