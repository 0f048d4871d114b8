"""A directory that is shared, beside one that is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.p9.client import Guest, servers


@pytest.fixture(autouse=True)
def _servers_closed() -> Iterator[None]:
    """Descriptors that pile up over a thousand tests get numbers that select(2) does not take."""
    yield
    while servers:
        servers.pop().close()


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
