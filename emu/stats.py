"""How often the guest made the machine work, and where the time went."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from devices.frozen import frozen

__all__ = ["BUCKETS", "UNCLAIMED", "ExitRow", "ExitStats", "Kind"]

BUCKETS = 64                            # bit lengths of a time in nanoseconds
UNCLAIMED = "unclaimed"                 # the handler's name where nobody has registered one
COLUMNS = "ms", "share", "mean µs", "p50 µs", "p99 µs", "max µs"


class Kind(enum.StrEnum):
    """What made the machine work."""

    PORT_IN = "port in"
    PORT_OUT = "port out"
    MMIO_READ = "mmio read"
    MMIO_WRITE = "mmio write"
    RDMSR = "rdmsr"
    WRMSR = "wrmsr"
    SYSCALL = "syscall"                 # intercepted; answered, or passed on to the guest's kernel
    INTERRUPT = "interrupt"
    CR8_READ = "cr8 read"
    CR8_WRITE = "cr8 write"
    BETWEEN = "between runs"            # of the CPU: work that no exit asked for
    RUN_END = "end of run"              # counts only
    NATIVE = "native"                   # machine code deals with it; counts only


OUTSIDE = Kind.BETWEEN, Kind.RUN_END, Kind.NATIVE       # the others are exits into Python handlers, while the CPU runs


@frozen
class ExitRow:
    """One handler of one kind of exit.

    Attributes:
        kind, handler: of what; the handler by its device's or hypercall's name.
        count: how often.
        total_ns: host time in the handler, what it called included.
        longest_ns: the longest call.
        histogram: [i] calls took under 2**i nanoseconds, and not under half of that.
    """

    kind: Kind
    handler: str
    count: int
    total_ns: int = 0
    longest_ns: int = 0
    histogram: tuple[int, ...] = (0,) * BUCKETS

    @property
    def has_times(self) -> bool:
        """Whether its calls were timed."""
        return any(self.histogram)

    @property
    def mean_ns(self) -> float:
        """Average time of a call."""
        return self.total_ns / self.count if self.count else 0.0

    def quantile_ns(self, share: float) -> float:
        """The time that a share (0 to 1) of the calls stayed within.

        The histogram knows it to a factor of two; in between, calls are taken to be spread evenly.
        """
        wanted = share * sum(self.histogram)
        for bits, (calls, so_far) in enumerate(zip(self.histogram, accumulate(self.histogram), strict=True)):
            if calls and so_far >= wanted:
                start, end = (1 << bits) >> 1, 1 << bits
                return min(start + (end - start) * (1 - (so_far - wanted) / calls), self.longest_ns)
        return 0.0

    def __sub__(self, before: ExitRow) -> ExitRow:
        """What came since; the longest call as the histogram knows it, unless it was the longest of all."""
        histogram = tuple(now - then for now, then in zip(self.histogram, before.histogram, strict=True))
        longest_ns = self.longest_ns
        if longest_ns == before.longest_ns:
            bits = max((bits for bits, calls in enumerate(histogram) if calls), default=0)
            longest_ns = min(longest_ns, (1 << bits) - 1)
        count, total_ns = self.count - before.count, self.total_ns - before.total_ns
        return ExitRow(self.kind, self.handler, count, total_ns, longest_ns, histogram)


@frozen
class ExitStats:
    """What a machine has done since it was made; `after - before` is what it did in between.

    Attributes:
        exits: a row for each handler that was called.
        driven_ns: host time in which the machine was driven: the wall clock of all else.
        run_ns: the part of it inside the CPU, exits included.
        idle_ns: the part of it slept because the guest was halted.
        timed: whether the machine was made with `accounting=True`; without, rows have counts only.
    """

    exits: tuple[ExitRow, ...]
    driven_ns: int
    run_ns: int
    idle_ns: int
    timed: bool = False

    def __sub__(self, before: ExitStats) -> ExitStats:
        """What came since `before`, of the same machine."""
        old = {(row.kind, row.handler): row for row in before.exits}
        rows = (row - old[key] if (key := (row.kind, row.handler)) in old else row for row in self.exits)
        return ExitStats(
            tuple(row for row in rows if row.count),
            self.driven_ns - before.driven_ns, self.run_ns - before.run_ns, self.idle_ns - before.idle_ns, self.timed,
        )

    def rows(self) -> list[ExitRow]:
        """The rows: where most time went first, or without times, what was most frequent."""
        return sorted(self.exits, key=lambda row: (-row.total_ns, -row.count))

    def count(self, kind: Kind, handler: str | None = None) -> int:
        """How often something of a kind happened, by one handler or all."""
        return sum(row.count for row in self.exits if row.kind == kind and handler in (None, row.handler))

    @property
    def handlers_ns(self) -> int:
        """Time in the handlers of exits."""
        return sum(row.total_ns for row in self.exits if row.kind not in OUTSIDE)

    @property
    def between_ns(self) -> int:
        """Time in work that no exit asked for: timers, files, output that machine code has collected."""
        return sum(row.total_ns for row in self.exits if row.kind == Kind.BETWEEN)

    @property
    def guest_ns(self) -> int:
        """Time in the CPU without the handlers: the guest's code, and the way from it to the handlers and back."""
        return max(self.run_ns - self.handlers_ns, 0)

    @property
    def loop_ns(self) -> int:
        """The rest: the run loop itself, and looking at the condition that it is driven until."""
        return max(self.driven_ns - self.run_ns - self.idle_ns - self.between_ns, 0)

    def split(self) -> list[tuple[str, int]]:
        """(part, nanoseconds) of the time driven; all parts together are all of it."""
        if not self.timed:
            rest = max(self.driven_ns - self.run_ns - self.idle_ns, 0)
            return [("guest and exits", self.run_ns), ("idle", self.idle_ns), ("run loop", rest)]
        return [
            ("guest", self.guest_ns), ("handlers", self.handlers_ns), ("between runs", self.between_ns),
            ("idle", self.idle_ns), ("run loop", self.loop_ns),
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, of types that `json.dump` takes; times in nanoseconds."""
        return {
            "timed": self.timed, "driven_ns": self.driven_ns, "split_ns": dict(self.split()),
            "rows": [_row_as_json(row) for row in self.rows()],
        }

    def table(self) -> str:
        """Rows and split as lines of text."""
        return "\n".join(_timed_lines(self) if self.timed else _counted_lines(self))


def _row_as_json(row: ExitRow) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": row.kind.value, "handler": row.handler, "count": row.count}
    if row.has_times:
        used = max((bits + 1 for bits, calls in enumerate(row.histogram) if calls), default=0)
        values |= {
            "total_ns": row.total_ns, "mean_ns": round(row.mean_ns), "longest_ns": row.longest_ns,
            "p50_ns": round(row.quantile_ns(0.5)), "p99_ns": round(row.quantile_ns(0.99)),
            "histogram": list(row.histogram[:used]),
        }
    return values


def _names(rows: list[ExitRow]) -> list[str]:
    """Kinds and handlers as the first columns of a table, under the heading."""
    names = [("kind", "handler"), *((row.kind, row.handler) for row in rows)]
    width = max(len(handler) for _, handler in names)
    return [f"{kind:<14}{handler:<{width}}" for kind, handler in names]


def _counted_lines(stats: ExitStats) -> Iterator[str]:
    rows = stats.rows()
    heading, *names = _names(rows)
    yield f"{heading}{'count':>14}"
    for row, name in zip(rows, names, strict=True):
        yield f"{name}{row.count:>14,}"
    for part, ns in stats.split():
        yield f"{part:<{len(heading)}}{ns / 1e9:>14.3f} s"


def _timed_lines(stats: ExitStats) -> Iterator[str]:
    rows = stats.rows()
    heading, *names = _names(rows)
    wall_ns = stats.driven_ns or 1
    yield f"{heading}{'count':>14}" + "".join(f"{column:>10}" for column in COLUMNS)
    for row, name in zip(rows, names, strict=True):
        line = f"{name}{row.count:>14,}"
        if row.has_times:
            times = row.mean_ns, row.quantile_ns(0.5), row.quantile_ns(0.99), row.longest_ns
            line += f"{row.total_ns / 1e6:>10.2f}{row.total_ns / wall_ns:>10.1%}"
            line += "".join(f"{ns / 1e3:>10.1f}" for ns in times)
        yield line
    for part, ns in (*stats.split(), ("driven", stats.driven_ns)):
        yield f"{part:<{len(heading) + 14}}{ns / 1e6:>10.2f}{ns / wall_ns:>10.1%}"
