"""Waiting for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.pool.fakes import PATIENCE_S


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.001)
