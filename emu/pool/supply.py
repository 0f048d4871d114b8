"""Things that stand ready, each for who has waited longest: threads and asyncio's tasks alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Supply"]

T = TypeVar("T")


class Supply(Generic[T]):
    """A queue in which nobody overtakes; safe to use from several threads.

    Args:
        things: that are there from the start.
    """

    def __init__(self, things: Iterable[T] = ()) -> None:
        self._lock = threading.Lock()
        self._things = deque(things)
        self._waiting: deque[Future[T]] = deque()
        self._end: Exception | None = None

    def __len__(self) -> int:
        return len(self._things)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def put(self, thing: T) -> None:
        """Give a thing to who has waited longest, or keep it for who comes."""
        with self._lock:
            while self._waiting:
                future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_result(thing)
                    return
            self._things.append(thing)

    def take(self) -> T:
        """A thing; waits for it. Raises what `end` was given."""
        future = self._claim()
        try:
            return future.result()
        except BaseException:
            self._abandon(future)
            raise

    async def take_async(self) -> T:
        """`take`, for asyncio."""
        future = self._claim()
        try:
            return await asyncio.wrap_future(future)
        except BaseException:
            self._abandon(future)
            raise

    def take_now(self) -> T | None:
        """A thing that nobody has to wait for, None if there is none. Raises what `end` was given."""
        with self._lock:
            self._check()
            return self._things.popleft() if self._things else None

    def pick(self, test: Callable[[T], bool]) -> list[T]:
        """Take out all for which a condition holds."""
        with self._lock:
            picked = [thing for thing in self._things if test(thing)]
            self._things = deque(thing for thing in self._things if thing not in picked)
        return picked

    def end(self, error: Exception) -> list[T]:
        """Have who waits, and who will come, get an error; what was left."""
        with self._lock:
            self._end = self._end or error
            left = list(self._things)
            self._things.clear()
            while self._waiting:
                future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(_copy(self._end))
        return left

    def _claim(self) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._check()
            if self._things:
                future.set_result(self._things.popleft())
            else:
                self._waiting.append(future)
        return future

    def _abandon(self, future: Future[T]) -> None:
        """Who claimed does not wait any more; what it was given meanwhile is for the next one."""
        if future.cancel():
            with self._lock, suppress(ValueError):
                self._waiting.remove(future)
        elif future.exception() is None:
            self.put(future.result())

    def _check(self) -> None:
        if self._end is not None:
            raise _copy(self._end)


def _copy(error: Exception) -> Exception:
    """The same error for another thread: each adds its own traceback."""
    return type(error)(*error.args)
