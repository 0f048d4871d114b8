"""How often the guest made the machine work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExitStats:
    """Counts since the machine was made.

    Attributes:
        python: exits that entered Python, by kind (port I/O by device).
        native: events that machine code dealt with, by kind.
        idle_ns: host time slept because the guest was halted.
        run_ns: host time inside the CPU, exits included.
    """

    python: dict[str, int]
    native: dict[str, int]
    idle_ns: int
    run_ns: int

    def rows(self) -> list[tuple[str, int]]:
        """(kind, count), the most frequent first."""
        return sorted((self.python | self.native).items(), key=lambda row: -row[1])

    def table(self) -> str:
        """The counts as lines of text."""
        lines = [f"{kind:<28}{count:>12,}" for kind, count in self.rows() if count]
        lines.append(f"{'seconds in the guest':<28}{self.run_ns / 1e9:>12.3f}")
        lines.append(f"{'seconds idle':<28}{self.idle_ns / 1e9:>12.3f}")
        return "\n".join(lines)
