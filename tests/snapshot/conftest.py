"""A snapshot that tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emu.memory import GuestMemory
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import State, new_memory


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    """RAM that nobody writes to."""
    memory = new_memory()
    yield memory
    memory.close()


@pytest.fixture(scope="module")
def saved(memory: GuestMemory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of it, with another file."""
    path = tmp_path_factory.mktemp("saved") / "machine.snap"
    save_snapshot(path, State(), memory, files={"disk0": lambda file: file.write_bytes(b"overlay" + bytes(3 << 20))})
    return path


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's files need not outlive the machine's power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
