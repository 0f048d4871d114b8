"""Machines in fresh processes: an interpreter that has nothing but the machine."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from contextlib import suppress
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
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise EmuError(f"an option cannot be handed to another process: {error}") from None
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise EmuError(f"cannot start a process: {error.strerror}") from None
    try:
        pid = _start(theirs)
        machine = MachineProcess(ours, pid, os.pidfd_open(pid), is_child=True)
    except OSError as error:
        ours.close()                                    # the process ends by that, if there is one
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
    program = PROGRAM.format(path=[os.fspath(place) for place in sys.path], parent=os.getpid())
    source = os.dup(sock.fileno()) if sock.fileno() == CHILD_FD else sock.fileno()  # onto itself it would not be kept
    actions = [
        (os.POSIX_SPAWN_DUP2, source, CHILD_FD),        # first: it may be 0 or 1
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    command = [sys.executable, "-c", program]
    try:                                                # no signal blocked: a timer's stops the CPU
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=actions, setsigmask=())
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
    except EOFError:
        return None
    machine, answer = None, m.Reply(frame.message.number, m.Done())
    try:
        machine = _made(frame.data)
    except Exception as error:                          # also what somebody's handlers raise
        kind = type(error).__name__
        text = str(error) if isinstance(error, EmuError | OSError | TypeError | ValueError) else f"{kind}: {error}"
        answer = m.Reply(frame.message.number, m.Failed(kind, text))
    with suppress(OSError):                             # nobody waits for it any more
        wire.post(answer)
    return machine


def _made(words: bytes) -> Machine:
    try:
        snapshot, options = pickle.loads(words)         # from the process that has started this one
    except Exception as error:                          # whatever loading somebody's classes may raise
        raise EmuError(f"an option cannot be handed to another process: {error}") from None
    if snapshot is None:
        from emu.launch import boot

        return boot(**options)
    from emu.snapshot.machine import restore

    return restore(snapshot, **options)
