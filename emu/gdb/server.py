"""Where gdb connects to: a TCP port of this host, or a socket file."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path
from typing import Self

from emu.errors import EmuError
from emu.gdb.connection import Connection
from emu.gdb.debugger import Debugger
from emu.gdb.monitor import Monitor
from emu.gdb.stub import Stub
from emu.machine import Machine
from emu.run_loop import StopReason
from emu.vsock_sockets import SocketFile

__all__ = ["GdbServer"]

LOOPBACK = "127.0.0.1"
LAST_PORT = 0xFFFF
WELL = (StopReason.POWER_OFF, StopReason.REQUESTED, StopReason.EXIT)

log = logging.getLogger("emu.gdb")


class GdbServer:
    """Lets a gdb debug a machine: its kernel, and what runs on it. It answers while the machine is driven.

    Args:
        machine: whose guest is debugged.
        address: a TCP port, on the loopback interface; or HOST:PORT; or the path of a socket file to make. Port 0 is
            any that is free.
        wait: the guest does not run until a gdb lets it.

    Attributes:
        address: what gdb's `target remote` takes.

    Raises:
        EmuError: nobody can listen there, or the machine is debugged already.
    """

    def __init__(self, machine: Machine, address: str | int, wait: bool = False) -> None:
        self._machine, self._loop = machine, machine.run_loop
        self._loop.check_open()
        if wait and self._loop.debugger is not None:
            raise EmuError("gdb: the machine is debugged already")
        self._file: SocketFile | None = None
        self._sock, self.address = self._listen(str(address))
        self._stub: Stub | None = None
        self._debugger: Debugger | None = None
        self._waits = wait
        machine.watch_fd(self._sock.fileno(), self._accept)
        self._loop.in_copies.append(self._in_copy)
        if wait:
            self._attach()

    def _listen(self, address: str) -> tuple[socket.socket, str]:
        found = re.fullmatch(r"(?:(?P<host>[^/]*):)?(?P<port>[0-9]{1,20})", address)
        if found is None:
            self._file = SocketFile(Path(address), "gdb")
            return self._file.sock, str(self._file.path)
        host, port = found["host"] or LOOPBACK, int(found["port"])
        if port > LAST_PORT:
            raise EmuError(f"gdb: {port} is no port: they end at {LAST_PORT}")
        try:
            sock = socket.create_server((host.strip("[]"), port), family=_family(host), backlog=1)
        except OSError as error:
            raise EmuError(f"gdb: {host}:{port}: {error.strerror or error}") from None
        sock.setblocking(False)
        return sock, f"{host}:{sock.getsockname()[1]}"

    # -- a gdb comes and goes ----------------------------------------------------------------------------------

    def _attach(self) -> Debugger:
        """The guest is debugged from now on, and stands."""
        if self._debugger is None:
            self._debugger = Debugger(self._machine, self._stopped, self._ended)
            self._loop.debugger = self._debugger
        self._debugger.pause()
        return self._debugger

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            log.info("gdb: not connected: %s", error.strerror)
            return
        if self._stub is not None or self._loop.debugger is not self._debugger:
            log.info("gdb: a second one wants to connect; refused")
            sock.close()
            return
        debugger, machine = self._attach(), self._machine
        stub = Stub(debugger, Monitor(machine, debugger), machine.request_stop, self._detached)
        self._stub = stub
        stub.connected(
            Connection(machine.watch_fd, machine.unwatch_fd, sock, stub.received, stub.interrupted, self._lost)
        )

    def _stopped(self) -> None:
        self._waits = False
        if self._stub is not None:
            self._stub.stopped()

    def _detached(self) -> None:
        """gdb leaves, and has been told that it may."""
        self._waits = False
        self._hang_up()

    def _hang_up(self) -> None:
        if self._stub is not None and self._stub.connection is not None:
            self._stub.connection.close()

    def _lost(self) -> None:
        """The connection is over: the guest goes on, unless it still waits for its first gdb to let it."""
        self._stub = None
        debugger = self._debugger
        if debugger is None:
            return
        if self._waits and debugger.stands:
            debugger.forget()
            return
        self._debugger = self._loop.debugger = None
        debugger.end()

    def _ended(self) -> None:
        """The guest has stopped for good."""
        if self._stub is not None:
            is_well = self._machine.stop_reason in WELL
            self._stub.ended(self._machine.exit_status or 0 if is_well else None)
        self._waits = False
        self._hang_up()

    def _in_copy(self) -> None:
        """This process is a copy: nobody debugs here, and the guest runs. The socket file stays: it is the other's."""
        self._file = None
        self.close()

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Listen no more; the guest goes on."""
        self._waits = False
        self._hang_up()
        self._lost()
        if self._loop.is_open:
            self._machine.unwatch_fd(self._sock.fileno())
        if self._in_copy in self._loop.in_copies:
            self._loop.in_copies.remove(self._in_copy)
        if self._file is not None:
            self._file.close()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
