"""What processes take of the host's memory."""

from __future__ import annotations

from pathlib import Path

from devices.frozen import frozen

__all__ = ["MemoryUse", "memory_of"]


@frozen
class MemoryUse:
    """What a process takes of the host's memory, in bytes: for itself alone, and shared with others."""

    private_bytes: int
    shared_bytes: int


def memory_of(pid: int) -> MemoryUse | None:
    """That of a process (proc(5), smaps_rollup); None if it is gone, or another user's."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    rows = (line.split() for line in text.splitlines()[1:])
    size = {row[0].rstrip(":"): int(row[1]) << 10 for row in rows}
    if not size:                        # a zombie's
        return None
    return MemoryUse(size["Private_Clean"] + size["Private_Dirty"], size["Shared_Clean"] + size["Shared_Dirty"])
