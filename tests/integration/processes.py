"""Processes of this host: who descends from whom, and what they hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

PATIENCE_S = 60.0


def parents() -> dict[int, int]:
    """Each living process' parent."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue                    # it ended meanwhile
        if state not in "ZX":
            found[int(directory.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    """All that a process has started, and they."""
    tree, found, size = parents(), {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in tree.items() if parent in found}
    return found - {pid}


def seconds_until_gone(pids: Iterable[int]) -> float:
    """How long processes are still there."""
    began, left = time.monotonic(), set(pids)
    while left & parents().keys():
        assert time.monotonic() - began < PATIENCE_S, f"{left} are still there"
        time.sleep(0.01)
    return time.monotonic() - began


def resident(pid: int) -> int:
    """Bytes of memory that a process has, shared ones too."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
