"""Forks of a process that has a machine.

The child has the parent's RAM and translated code copy-on-write, and goes on from the same instruction. It becomes a
machine of its own (`Machine.forked`), and ends with the process that it was forked from, however that ends: the host's
kernel kills it then (PR_SET_PDEATHSIG, prctl(2)).

The host's kernel means the *thread* that forked by that, and a fork in a process with other threads inherits whatever
locks those hold. So only processes with a single thread are forked.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from devices.frozen import frozen
from emu.cpu.abi import ffi, libc
from emu.errors import EmuError
from emu.process import messages as m
from emu.process.wire import Wire

if TYPE_CHECKING:
    from emu.machine import Machine
    from emu.process.client import MachineProcess

__all__ = ["Child", "fork_here", "fork_process", "plain_fork"]

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


def fork_here(machine: Machine, count: int) -> list[MachineProcess]:
    """`Machine.fork`."""
    from emu.process.client import MachineProcess

    if threading.active_count() > 1:
        raise EmuError("a process with other threads cannot be forked safely; use emu.spawn(), and fork that machine")
    machine.prepare_fork()
    children: list[MachineProcess] = []
    try:
        for _ in range(count):
            child = fork_process(os.fork)
            if isinstance(child, int):
                _live(machine, socket.socket(fileno=child))
            children.append(MachineProcess(socket.socket(fileno=child.sock), child.pid, child.pidfd, is_child=True))
    except BaseException:
        for one in children:
            one.close()
        raise
    return children


def _live(machine: Machine, sock: socket.socket) -> NoReturn:
    """A child of the user's own process: from here on it is nothing but the machine."""
    status = 1
    try:
        _become(machine, sock)
        status = 0
    except BaseException:               # a fault of ours: nothing of the parent's may go on in the child
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _become(machine: Machine, sock: socket.socket) -> None:
    from emu.process.client import close_all
    from emu.process.server import Server

    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is for the user's process, which closes this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    gc.freeze()                                             # looking through the parent's objects would copy them
    close_all()
    try:
        machine.forked()
    except (EmuError, OSError) as error:
        with suppress(OSError):
            Wire(sock, m.Request).post(m.Reply(0, m.Failed(type(error).__name__, str(error))))
        return
    Server(machine, sock).serve()
