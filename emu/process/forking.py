"""Forks of a process that has a machine.

The child has the parent's RAM and translated code copy-on-write, and goes on from the same instruction. It becomes a
machine of its own (`Machine.forked`), and ends with the process that it was forked from, however that ends: the host's
kernel kills it then (PR_SET_PDEATHSIG, prctl(2)).

The host's kernel means the *thread* that forked by that, and a fork in a process with other threads inherits whatever
locks those hold. So only processes with a single thread are forked.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from devices.frozen import frozen
from emu.cpu.abi import ffi, libc
from emu.errors import EmuError

__all__ = ["Child", "fork_process", "plain_fork"]

PR_SET_PDEATHSIG = 1
SIGKILL = int(signal.SIGKILL)


@frozen
class Child:
    """A child, as its parent has it.

    Attributes:
        pid: its number.
        sock: descriptor of its user's end of the socket to it.
        pidfd: refers to it even when it has ended.
    """

    pid: int
    sock: int
    pidfd: int


def plain_fork() -> int:
    """fork(2) as libc has it, for a process that is nothing but a machine; returns and raises as `os.fork` does.

    `os.fork` has Python's own locks and threads put right, and calls what modules have registered. In a process with a
    single thread nothing is wrong with them, and all that touches 200 pages of the child, a millisecond.
    """
    pid: int = libc.fork()
    if pid < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return pid


def fork_process(fork: Callable[[], int]) -> Child | int:
    """Fork this process.

    Args:
        fork: `os.fork`, or `plain_fork`.

    Returns:
        In the parent the child; in the child the descriptor of the socket to its user.

    Raises:
        EmuError: the host has no room for another process; in the parent.
    """
    try:
        ours, theirs = (end.detach() for end in socket.socketpair())
    except OSError as error:
        raise EmuError(f"cannot fork: {error.strerror}") from None
    parent = os.getpid()
    try:
        pid = fork()
    except OSError as error:
        os.close(ours)
        os.close(theirs)
        raise EmuError(f"cannot fork: {error.strerror}") from None
    if pid == 0:
        os.close(ours)
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        return theirs
    os.close(theirs)
    try:
        return Child(pid, ours, os.pidfd_open(pid))
    except OSError as error:
        os.close(ours)                  # the child ends by that
        raise EmuError(f"cannot fork: {error.strerror}") from None
