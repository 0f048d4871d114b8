"""Counts what a machine does for its guest and, when it was made to, how long each time took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from emu.stats import BUCKETS, ExitRow, Kind

__all__ = ["Accounting", "Tally"]

Arguments = TypeVarTuple("Arguments")
R = TypeVar("R")


class Tally:
    """What one handler of one kind of exit has done so far; who calls the handler adds to `count`.

    Attributes:
        count: how often.
        total_ns, longest_ns: host time in it, and the longest of its calls.
        histogram: how many calls by the bit length of their nanoseconds.
    """

    __slots__ = ("count", "handler", "histogram", "kind", "longest_ns", "total_ns")

    def __init__(self, kind: Kind, handler: str) -> None:
        self.kind = kind
        self.handler = handler
        self.count = 0
        self.total_ns = 0
        self.longest_ns = 0
        self.histogram = [0] * BUCKETS

    def add(self, took_ns: int) -> None:
        """Add the time of a call."""
        self.total_ns += took_ns
        self.histogram[took_ns.bit_length()] += 1
        if took_ns > self.longest_ns:
            self.longest_ns = took_ns

    def row(self) -> ExitRow:
        """What it says now."""
        return ExitRow(self.kind, self.handler, self.count, self.total_ns, self.longest_ns, tuple(self.histogram))


class Accounting:
    """The tallies of one machine; they outlive its board.

    Args:
        timing: whether calls are timed as well; without, handlers are called as they are.

    Attributes:
        timing: that.
        elsewhere_ns: time inside the innermost call of a function from `between` that is accounted for by others.
    """

    def __init__(self, timing: bool = False) -> None:
        self.timing = timing
        self.elsewhere_ns = 0
        self._tallies: dict[tuple[Kind, str], Tally] = {}

    def tally(self, kind: Kind, handler: str) -> Tally:
        """The tally of a handler, by its name: a device's or a hypercall's."""
        return self._tallies.setdefault((kind, handler), Tally(kind, handler))

    def timed(self, tally: Tally, function: Callable[[*Arguments], R]) -> Callable[[*Arguments], R]:
        """The function itself, or one that adds its times to the tally; counting is the caller's."""
        if not self.timing:
            return function
        clock, histogram = time.perf_counter_ns, tally.histogram

        # What `add` does, written out: this runs with every exit
        def measured(*arguments: *Arguments) -> R:
            started = clock()
            try:
                return function(*arguments)
            finally:
                took_ns = clock() - started
                tally.total_ns += took_ns
                histogram[took_ns.bit_length()] += 1
                if took_ns > tally.longest_ns:
                    tally.longest_ns = took_ns

        return measured

    def counted(self, tally: Tally, function: Callable[[*Arguments], R]) -> Callable[[*Arguments], R]:
        """A function that counts its calls as well."""
        function = self.timed(tally, function)

        def call(*arguments: *Arguments) -> R:
            tally.count += 1
            return function(*arguments)

        return call

    def between(self, handler: str, function: Callable[[*Arguments], R]) -> Callable[[*Arguments], R]:
        """As `counted`, for work between two runs of the CPU, in which the machine may be driven on.

        Such a run, and what belongs to it, is in `elsewhere_ns` and not part of the time. Without timing it is the
        function itself, not counted either.
        """
        if not self.timing:
            return function
        tally, clock = self.tally(Kind.BETWEEN, handler), time.perf_counter_ns

        def measured(*arguments: *Arguments) -> R:
            outer, self.elsewhere_ns = self.elsewhere_ns, 0
            started = clock()
            try:
                return function(*arguments)
            finally:
                tally.count += 1
                tally.add(max(clock() - started - self.elsewhere_ns, 0))
                self.elsewhere_ns = outer

        return measured

    def rows(self) -> tuple[ExitRow, ...]:
        """All tallies that have counted anything."""
        return tuple(tally.row() for tally in self._tallies.values() if tally.count)
