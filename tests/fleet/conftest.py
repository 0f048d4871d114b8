"""A fleet without machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from emu.fleet.fleet import Fleet
from tests.fleet.fakes import FakeTemplates


@pytest.fixture
def lines() -> list[str]:
    """The log."""
    return []


@pytest.fixture
def fleet(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A fleet whose machines are no machines."""
    monkeypatch.setattr("emu.fleet.fleet.Templates", FakeTemplates)
    with Fleet(sink=lines.append) as fleet:
        yield fleet


@pytest.fixture
def templates(fleet: Fleet) -> FakeTemplates:
    """What makes them."""
    return cast(FakeTemplates, fleet._templates)
