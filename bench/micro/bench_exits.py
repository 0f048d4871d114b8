"""The ways out of the guest, each from the guest's instruction to the one behind it."""

from __future__ import annotations

import pytest

from bench.exits import EXITS, HALT, Exits
from bench.micro.conftest import Timed

COUNT = 10_000
COUNTS = {"bypassed byte": 100_000, "syscall": 100_000, "cpuid": 100_000}


@pytest.mark.parametrize("name", [*EXITS, HALT])
def test_exit(timed: Timed, name: str) -> None:
    with Exits(name) as leave:
        timed(f"exit_{name.replace(' ', '_')}_ns", leave, COUNTS.get(name, COUNT))
