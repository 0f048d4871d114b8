"""Forks of a process that has a machine.

The child has the parent's RAM and translated code copy-on-write, and goes on from the same instruction. It becomes a
machine of its own (`Machine.forked`) and a `Server`, and ends with the process that it was forked from, however that
ends: the host's kernel kills it then (PR_SET_PDEATHSIG, prctl(2)).

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
from pathlib import Path
from typing import TYPE_CHECKING

from devices.frozen import frozen
from emu.cpu.abi import libc
from emu.errors import EmuError
from emu.process import messages as m
from emu.process.server import Server
from emu.process.wire import Wire

if TYPE_CHECKING:
    from emu.fittings import VsockNetwork
    from emu.machine import Machine
    from emu.process.client import MachineProcess

__all__ = ["Child", "fork_here", "fork_machine"]

PR_SET_PDEATHSIG = 1
DEPTH = 50                              # calls from one `Server.serve` to that of a child, and some more


@frozen
class Child:
    """A child, as its parent has it.

    Attributes:
        pid: its number.
        sock: its user's end of the socket to it.
        pidfd: refers to it even when it has ended.
    """

    pid: int
    sock: socket.socket
    pidfd: int


def fork_machine(machine: Machine, vsock: Path | VsockNetwork | None, let_go: Callable[[], None]) -> Child:
    """Fork this process.

    Args:
        machine: prepared for that (`Machine.prepare_fork`).
        vsock: the child's socket file, or its network.
        let_go: closes, in the child, what is only the parent's.

    Raises:
        EmuError: the host has no room for another process.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise EmuError(f"cannot fork: {error.strerror}") from None
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise EmuError(f"cannot fork: {error.strerror}") from None
    if pid == 0:
        status = 1
        try:
            ours.close()
            let_go()
            _live(machine, theirs, vsock, parent)
            status = 0
        except BaseException:           # a fault of ours: nothing of the parent's may go on in the child
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    theirs.close()
    try:
        return Child(pid, ours, os.pidfd_open(pid))
    except OSError as error:
        ours.close()                    # the child ends by that
        raise EmuError(f"cannot fork: {error.strerror}") from None


def _live(machine: Machine, sock: socket.socket, vsock: Path | VsockNetwork | None, parent: int) -> None:
    """The child, until its end."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is for the user's process, which closes this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    sys.setrecursionlimit(sys.getrecursionlimit() + DEPTH)  # a fork of a fork of a fork is as deep in calls
    gc.freeze()                                             # looking through the parent's objects would copy them
    try:
        machine.forked(vsock)
    except (EmuError, OSError) as error:
        with suppress(OSError):
            Wire(sock, m.Request).post(m.Reply(0, m.Failed(type(error).__name__, str(error))))
        return
    Server(machine, sock).serve()


def fork_here(machine: Machine, count: int) -> list[MachineProcess]:
    """`Machine.fork`."""
    from emu.process.client import MachineProcess, close_all

    if threading.active_count() > 1:
        raise EmuError("a process with other threads cannot be forked safely; use emu.spawn(), and fork that machine")
    machine.prepare_fork()
    children: list[MachineProcess] = []
    try:
        for _ in range(count):
            child = fork_machine(machine, None, close_all)
            children.append(MachineProcess(child.sock, child.pid, child.pidfd, is_child=True))
    except BaseException:
        for one in children:
            one.close()
        raise
    return children
