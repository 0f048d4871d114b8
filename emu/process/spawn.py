"""Machines in fresh processes: an interpreter that has nothing but the machine."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from emu.errors import EmuError
from emu.process import messages as m
from emu.process.client import MachineProcess
from emu.process.wire import Wire

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["main", "spawn"]

Path_ = str | os.PathLike[str]

CHILD_FD = 3                            # of the socket, in the new process
PROGRAM = "import sys; sys.path[:] = {path!r}; from emu.process.spawn import main; main({parent})"


def spawn(snapshot: Path_ | None = None, **options: Any) -> MachineProcess:
    """Make a machine in a fresh process.

    Args:
        snapshot: to restore; None: a guest is booted.
        options: of `emu.restore`, or of `emu.boot`; hypercalls and system calls by the names of their modules or
            files, since functions do not go from one process to another.

    Raises:
        EmuError: what `emu.restore` or `emu.boot` raised there; the host has no room for a process.
    """
    try:
        words = pickle.dumps((None if snapshot is None else os.path.abspath(snapshot), options))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EmuError(f"an option cannot be handed to another process: {error}") from None
    ours, theirs = socket.socketpair()
    try:
        pid = _start(theirs)
        machine = MachineProcess(ours, pid, os.pidfd_open(pid), is_child=True)
    except OSError as error:
        ours.close()
        raise EmuError(f"cannot start a process: {error.strerror}") from None
    finally:
        theirs.close()
    try:
        machine.make(words)
    except BaseException:
        machine.close()
        raise
    return machine


def _start(sock: socket.socket) -> int:
    """Start the interpreter, with the socket as its descriptor CHILD_FD; its process' number."""
    program = PROGRAM.format(path=sys.path, parent=os.getpid())
    source = os.dup(sock.fileno()) if sock.fileno() == CHILD_FD else sock.fileno()  # onto itself it would not be kept
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, source, CHILD_FD),
    ]
    try:
        return os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ, file_actions=actions)
    finally:
        if source != sock.fileno():
            os.close(source)


def main(parent: int) -> None:
    """The new process.

    Args:
        parent: whose end is its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the user's process, which closes this one
    os.closerange(CHILD_FD + 1, os.sysconf("SC_OPEN_MAX"))
    sock = socket.socket(fileno=CHILD_FD)
    os.set_inheritable(CHILD_FD, False)
    watched = os.pidfd_open(parent) if os.getppid() == parent else None
    machine = _make(sock) if watched is not None else None
    if machine is not None:
        from emu.process.server import Server

        Server(machine, sock, watched).serve()
    os._exit(0)                                         # taking the interpreter apart is of no use to anybody


def _make(sock: socket.socket) -> Machine | None:
    """The machine that the first request asks for; None if it cannot be made, or nobody asks."""
    wire = Wire(sock, m.Request)
    try:
        frame = wire.wait()
        snapshot, options = pickle.loads(frame.data)        # from the process that has started this one
        machine = _made(snapshot, options)
    except EOFError:
        return None
    except (EmuError, OSError, TypeError, ValueError) as error:
        wire.send(m.Reply(frame.message.number, m.Failed(type(error).__name__, str(error))))
        return None
    wire.send(m.Reply(frame.message.number, m.Done()))
    return machine


def _made(snapshot: str | None, options: dict[str, Any]) -> Machine:
    if snapshot is None:
        from emu.launch import boot

        return boot(**options)
    from emu.snapshot.machine import restore

    return restore(snapshot, **options)
