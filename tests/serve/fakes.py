"""Processes of machines for tests of the server: what `emu.serve` uses of `MachineProcess`, and nothing behind it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

from emu.errors import EmuError, MachineDied
from emu.process.memory import MemoryUse
from emu.stats import ExitRow, ExitStats, Kind

__all__ = ["FakeProcess"]


class FakeProcess:
    """One of them.

    Attributes:
        calls: what was asked of it.
        forks: that were made of it.
        greeting: what its console shows first.
    """

    def __init__(self, greeting: bytes = b"hello\n") -> None:
        self.calls: list[tuple[object, ...]] = []
        self.forks: list[FakeProcess] = []
        self.is_closed = False
        self.is_paused = False
        self.snapshots_fail = False
        self._shown: queue.SimpleQueue[tuple[int, bytes] | str] = queue.SimpleQueue()
        self._end = 0
        self._counts = 0
        self.say(greeting)

    def say(self, data: bytes) -> None:
        """Show something on the console."""
        self._shown.put((self._end, data))
        self._end += len(data)

    def skip(self, size: int) -> None:
        """Show nothing of so many bytes, as for a view that is too slow."""
        self._end += size

    def stop(self, reason: str) -> None:
        """Stop as the guest says."""
        self._shown.put(reason)

    # -- of a machine's process ------------------------------------------------------------------------------------

    def console_view(self, show: Callable[[int, bytes], object]) -> str:
        while not isinstance(shown := self._shown.get(), str):
            show(*shown)
        if self.is_closed:
            raise MachineDied("the machine is closed")
        return shown

    def console_send(self, data: bytes) -> None:
        self.calls.append(("type", data))

    def console_resize(self, columns: int, rows: int) -> None:
        self.calls.append(("resize", columns, rows))

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def snapshot(self, path: Path) -> None:
        if self.snapshots_fail:
            raise EmuError("a disk is in the way")
        path.mkdir()

    def fork(self) -> FakeProcess:
        self.forks.append(FakeProcess(b"a fork\n"))
        return self.forks[-1]

    def stats(self) -> ExitStats:
        self._counts += 100
        rows = ExitRow(Kind.WRMSR, "x2apic", self._counts), ExitRow(Kind.NATIVE, "cpuid", 7 * self._counts)
        return ExitStats(rows, self._counts, self._counts, 0)

    def use(self) -> MemoryUse:
        return MemoryUse(1 << 20, 2 << 20)

    def close(self) -> None:
        self.is_closed = True
        self.stop("")
