"""Users' handlers of hypercalls and system calls, as they are given: objects, or names of what holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from emu.errors import EmuError
from hypercalls.builtin import BUILT_IN
from hypercalls.registry import Hypercall, Registry
from hypercalls.syscalls import Syscall, SyscallTable

__all__ = ["handlers", "registry", "syscall_table"]

T = TypeVar("T")


def handlers(given: Sequence[T | str], kind: type[T]) -> Iterator[T]:
    """The handlers themselves.

    Args:
        given: handlers, or names as `hypercalls.loading.load_objects` takes them.
        kind: of handler.

    Raises:
        EmuError: there is no such code, it cannot be imported, or there is nothing in it.
    """
    for one in given:
        if not isinstance(one, str):
            yield one
            continue
        from hypercalls.loading import LoadError, load_objects

        try:
            yield from load_objects(one, kind)
        except LoadError as error:
            raise EmuError(str(error)) from None


def registry(own: Sequence[Hypercall]) -> Registry:
    """The built-in hypercalls, and a user's.

    Raises:
        EmuError: two have one number.
    """
    try:
        return Registry((*BUILT_IN, *own))
    except ValueError as error:
        raise EmuError(str(error)) from None


def syscall_table(own: Sequence[Syscall]) -> SyscallTable:
    """A user's system calls.

    Raises:
        EmuError: two have one number.
    """
    try:
        return SyscallTable(own)
    except ValueError as error:
        raise EmuError(str(error)) from None
