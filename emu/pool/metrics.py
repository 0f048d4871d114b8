"""What a pool has done, in numbers."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["PoolMetrics", "Quantiles", "Recorder"]

KEPT = 1000                             # of the last samples of each kind


@dataclass(frozen=True)
class Quantiles:
    """How long something took, in seconds: of the last 1,000 times, but for the count.

    Attributes:
        count: how often it happened in all.
        p50, p90, p99: half, nine tenths, and 99 of a hundred took no longer.
        longest: of them.
    """

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, samples: Iterable[float], count: int) -> Quantiles:
        """Those of samples; the nearest that there is, nothing between two of them."""
        ordered = sorted(samples)
        if not ordered:
            return cls(count)
        half, most, nearly_all = (ordered[round(part * (len(ordered) - 1))] for part in (0.5, 0.9, 0.99))
        return cls(count, half, most, nearly_all, ordered[-1])


@dataclass(frozen=True)
class PoolMetrics:
    """A pool at one moment.

    Attributes:
        size: machines that may run jobs at the same time.
        ready: fresh ones that wait for a job.
        in_use: that have one.
        waiting: jobs that were handed in and have no machine yet.
        jobs: that have ended, well or not.
        failures: of them, by the name of the error's class.
        waits: for a machine, from when a thread was there to use it.
        forks: of the warm machine.
        runs: from getting a machine to giving it back.
        replaced: fresh machines that had died, or did not answer, before anybody got them.
        restarts: of the warm machine.
    """

    size: int
    ready: int
    in_use: int
    waiting: int
    jobs: int
    failures: Mapping[str, int]
    waits: Quantiles
    forks: Quantiles
    runs: Quantiles
    replaced: int
    restarts: int


@dataclass
class _Samples:
    """Times of one kind."""

    count: int = 0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, seconds: float) -> None:
        self.count += 1
        self.last.append(seconds)

    def quantiles(self) -> Quantiles:
        return Quantiles.of(self.last, self.count)


class Recorder:
    """Counts, from several threads.

    Attributes:
        replaced, restarts: as `PoolMetrics`; written by one thread.
    """

    def __init__(self) -> None:
        self.replaced = 0
        self.restarts = 0
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        self._waits, self._forks, self._runs = _Samples(), _Samples(), _Samples()

    def waited(self, seconds: float) -> None:
        """Somebody has got a machine."""
        with self._lock:
            self._waits.add(seconds)

    def forked(self, seconds: float) -> None:
        """There is one machine more."""
        with self._lock:
            self._forks.add(seconds)

    def ended(self, seconds: float, error: BaseException | None) -> None:
        """A job has ended."""
        with self._lock:
            self._runs.add(seconds)
            if error is not None:
                self._failures[type(error).__name__] += 1

    def metrics(self, *, size: int, ready: int, in_use: int, waiting: int) -> PoolMetrics:
        """All of it now, with what the pool itself knows."""
        with self._lock:
            return PoolMetrics(
                size, ready, in_use, waiting, self._runs.count, dict(self._failures), self._waits.quantiles(),
                self._forks.quantiles(), self._runs.quantiles(), self.replaced, self.restarts,
            )  # fmt: skip
