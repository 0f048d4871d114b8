"""Functions of a test in a process that is forked from it."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["ForkedCall", "in_fork"]

T = TypeVar("T")


class ForkedCall:
    """Calls a function in a forked process, which begins at once; `outcome` waits for it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(writer)
            return
        try:
            answer = pickle.dumps((True, function()))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        try:
            with open(writer, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)

    def outcome(self) -> object:
        """What the function has returned; fails with its traceback if it raised."""
        with open(self._reader, "rb") as file:
            words = file.read()
        os.waitpid(self._pid, 0)
        assert words, "the process has crashed"
        succeeded, result = pickle.loads(words)
        assert succeeded, result
        return result


def in_fork(function: Callable[[], T]) -> T:
    """Call a function in a forked process, and wait for what it returns."""
    return ForkedCall(function).outcome()       # type: ignore[return-value]
