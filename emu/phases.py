"""Times of a command's phases, counted from the very start of its process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Phases"]

START_TIME_FIELD = 22       # of /proc/PID/stat (proc(5)), in clock ticks since the host booted


def process_age_s() -> float:
    """Seconds since this process was started, to one clock tick (10 ms); imports and interpreter included."""
    with open("/proc/self/stat", "rb") as file:
        after_name = file.read().rpartition(b")")[2].split()    # the name, field 2, may hold blanks
    ticks = int(after_name[START_TIME_FIELD - 3])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Phases:
    """What took how long: `with phases("load kernel"): ...`.

    The first row is the time from the start of the process until this object was made.
    """

    def __init__(self) -> None:
        self._origin = time.perf_counter() - process_age_s()
        self._rows: list[tuple[str, float, float]] = [("start python", 0.0, self.elapsed_s())]

    def elapsed_s(self) -> float:
        """Seconds since the process started."""
        return time.perf_counter() - self._origin

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body of a `with`; also when it fails. Phases may nest."""
        started = self.elapsed_s()
        place = len(self._rows)
        try:
            yield
        finally:
            self._rows.insert(place, (name, started, self.elapsed_s()))

    def add(self, name: str, start_s: float, end_s: float) -> None:
        """Add a phase that was timed elsewhere, in seconds since the process started."""
        self._rows.append((name, start_s, end_s))

    def rows(self) -> list[tuple[str, float, float]]:
        """(name, start, end) of each phase, in seconds since the process started, by start."""
        return list(self._rows)

    def table(self) -> str:
        """The phases as lines of text, milliseconds each, with the wall-clock total last."""
        width = max(len(name) for name, _, _ in self._rows)
        lines = [f"{'phase':<{width}}  {'at ms':>9}  {'ms':>9}"]
        lines += [f"{name:<{width}}  {start * 1e3:9.1f}  {(end - start) * 1e3:9.1f}" for name, start, end in self._rows]
        lines.append(f"{'wall':<{width}}  {'':>9}  {self.elapsed_s() * 1e3:9.1f}")
        return "\n".join(lines)
