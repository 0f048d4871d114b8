"""Fixtures that every device test may use."""

from __future__ import annotations

import pytest

from tests.devices.fakes import FakeClock, FakeLine


@pytest.fixture
def line() -> FakeLine:
    """An interrupt line, low."""
    return FakeLine()


@pytest.fixture
def clock() -> FakeClock:
    """A clock at guest time 0."""
    return FakeClock()
