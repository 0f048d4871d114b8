"""What a machine does a second, from what it had done at two moments."""

from __future__ import annotations

from devices.frozen import frozen
from emu.stats import OUTSIDE, ExitRow, ExitStats, Kind

__all__ = ["Rates", "rates"]


@frozen
class Rates:
    """Between two moments.

    Attributes:
        seconds: from the one to the other.
        guest, host, idle: shares of that time; what is left of 1, nobody drove the machine. Unless its exits are
            timed, handlers count as guest.
        interrupts: a second.
        rows: what was done, the most frequent first.
    """

    seconds: float
    guest: float
    host: float
    idle: float
    interrupts: float
    rows: tuple[ExitRow, ...]

    def of(self, row: ExitRow) -> float:
        """How often a second."""
        return row.count / self.seconds

    def kinds(self) -> dict[str, float]:
        """Exits a second by kind, the most frequent first."""
        counts: dict[str, int] = {}
        for row in self.rows:
            if row.kind not in OUTSIDE:
                counts[row.kind.value] = counts.get(row.kind.value, 0) + row.count
        return {kind: count / self.seconds for kind, count in sorted(counts.items(), key=lambda item: -item[1])}


def rates(before: ExitStats, after: ExitStats, elapsed_ns: int) -> Rates:
    """Of one machine.

    Args:
        before, after: at the two moments.
        elapsed_ns: host time between them.
    """
    wall_ns = max(elapsed_ns, 1)
    done = after - before
    guest_ns = done.guest_ns if done.timed else done.run_ns
    idle_ns = min(max(done.idle_ns, 0), done.driven_ns)
    host_ns = max(done.driven_ns - guest_ns - idle_ns, 0)
    rows = tuple(sorted((row for row in done.exits if row.count > 0), key=lambda row: -row.count))
    return Rates(
        wall_ns / 1e9, _share(guest_ns, wall_ns), _share(host_ns, wall_ns), _share(idle_ns, wall_ns),
        done.count(Kind.INTERRUPT) / (wall_ns / 1e9), rows,
    )  # fmt: skip


def _share(part_ns: int, whole_ns: int) -> float:
    return min(max(part_ns / whole_ns, 0.0), 1.0)
