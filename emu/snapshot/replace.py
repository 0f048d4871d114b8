"""A directory written aside, which then takes a name in one step; what had the name before is whole until then.

The names are exchanged by renameat2(2). On a file system that cannot do that, the old directory is moved aside first:
for a moment nothing has the name, and should the process be killed just then, the next save puts the old one back.

While a save is under way its directory is locked (flock(2)); an unlocked one is what a killed process has left.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from emu.snapshot.libc import exchange

__all__ = ["replacing", "sync_directory"]

NEW, OLD = "new", "old"


@contextmanager
def replacing(target: str) -> Iterator[str]:
    """A new directory to be filled; when the body of the `with` ends, it is `target`, and what that was is deleted.

    If the body fails, nothing has changed. Leftovers of killed processes beside `target` are cleared away.

    Args:
        target: absolute; a directory that may be deleted, or nothing.

    Raises:
        OSError: the host refused.
    """
    parent, name = os.path.split(target)
    _clear_leftovers(parent, name)
    aside, lock = _make_locked(parent, name)
    try:
        yield aside
        sync_directory(aside)
        _swap(aside, target)
        sync_directory(parent)
    finally:
        _delete(aside)          # now the old one
        os.close(lock)


def sync_directory(path: str) -> None:
    """Wait until the disk has the names in a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_locked(parent: str, name: str) -> tuple[str, int]:
    while True:
        path = os.path.join(parent, f".{name}.{os.getpid()}-{os.urandom(4).hex()}.{NEW}")
        os.mkdir(path)
        lock = _lock(path)
        if lock is not None and os.path.isdir(path):
            return path, lock
        if lock is not None:    # somebody took it for a leftover before it was locked
            os.close(lock)


def _lock(path: str) -> int | None:
    """A descriptor that holds the lock; None if somebody else has it, or the directory is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _swap(aside: str, target: str) -> None:
    """Give the directory its name; what had it is `aside` then."""
    if not os.path.lexists(target):
        os.rename(aside, target)
    elif not exchange(aside, target):
        lock = _lock(target)
        old = f"{aside.removesuffix(NEW)}{OLD}"
        try:
            os.rename(target, old)
            os.rename(aside, target)
        except BaseException:
            if not os.path.lexists(target):
                os.rename(old, target)
            raise
        finally:
            if lock is not None:
                os.close(lock)
        os.rename(old, aside)


def _clear_leftovers(parent: str, name: str) -> None:
    pattern = re.compile(rf"\.{re.escape(name)}\.\d+-[0-9a-f]{{8}}\.({NEW}|{OLD})")
    for entry in os.listdir(parent):
        found = pattern.fullmatch(entry)
        path = os.path.join(parent, entry)
        lock = _lock(path) if found else None
        if found is None or lock is None:
            continue
        with suppress(OSError):
            if found[1] == OLD and not os.path.lexists(os.path.join(parent, name)):
                os.rename(path, os.path.join(parent, name))
            else:
                _delete(path)
        os.close(lock)


def _delete(path: str) -> None:
    from shutil import rmtree

    rmtree(path, ignore_errors=True)
