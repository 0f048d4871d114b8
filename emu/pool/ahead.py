"""Results of jobs in their order, while jobs behind them are done already."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from itertools import islice
from time import monotonic
from typing import TypeVar

__all__ = ["in_order"]

T = TypeVar("T")


def in_order(
    handed_in: Iterator[Future[T]],
    most: int,
    timeout: float | None,
    progress: AbstractContextManager[Callable[[], object]],
) -> Iterator[T]:
    """What comes of each job; the first ones are handed in now, each further one when a result is taken.

    Args:
        handed_in: hands in a job whenever it is asked for the next.
        most: jobs handed in whose results were not taken.
        timeout: seconds from now.
        progress: gives what is called for each job.

    Raises:
        TimeoutError: `timeout` has passed.
        Exception: that a job raised. Those that have not begun then are cancelled.
    """
    deadline = None if timeout is None else monotonic() + timeout
    return _results(deque(islice(handed_in, most)), handed_in, deadline, progress)


def _results(
    futures: deque[Future[T]],
    handed_in: Iterator[Future[T]],
    deadline: float | None,
    progress: AbstractContextManager[Callable[[], object]],
) -> Iterator[T]:
    try:
        with progress as advance:
            while futures:
                left = None if deadline is None else max(deadline - monotonic(), 0)
                result = futures[0].result(left)
                futures.popleft()
                futures.extend(islice(handed_in, 1))
                advance()
                yield result
    finally:
        for future in futures:
            future.cancel()
