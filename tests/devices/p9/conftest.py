"""A directory that is shared, beside one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devices.p9.client import Guest


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The directory exported; its parent is the test's `tmp_path`."""
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture
def guest(shared: Path) -> Guest:
    """A guest that has attached it, with the default mapping."""
    return Guest(shared)
