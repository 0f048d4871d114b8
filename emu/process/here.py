"""Forks of a user's own process, which has a machine beside whatever else it has (`Machine.fork`)."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from emu.errors import EmuError
from emu.process import messages as m
from emu.process.client import MachineProcess, close_all
from emu.process.forking import fork_process
from emu.process.server import Server
from emu.process.wire import Wire

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["fork_here"]


def fork_here(machine: Machine, count: int) -> list[MachineProcess]:
    """`Machine.fork`."""
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
