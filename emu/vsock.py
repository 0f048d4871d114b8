"""Sockets between guest and host: the host's side of virtio-vsock, as AF_UNIX sockets and for Python.

The convention is Firecracker's. For a socket file PATH:

- a program of the host connects to PATH and sends "CONNECT <guest port>" and a newline; it reads "OK <host port>" and
  a newline, then the bytes are the guest's. If the guest refuses, the connection is closed instead;
- a program of the guest connects to CID 2 (the host), port N; that is a connection to the socket file PATH_N.

Machines of a network have their socket files in one directory, each under its CID. A program of a guest connects to
the CID of another guest, and its machine says "CONNECT <port> FROM <own CID> <own port>" at that one's socket file.

Nothing here starts a thread: sockets are watched beside the guest, on the machine's thread.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from devices import Clock, Files, Timer
from devices.virtio.vsock import Connection, NotReady, State, Vsock
from devices.virtio.vsock_connection import HOST_CID
from devices.virtio.vsock_state import VsockState
from emu.errors import EmuError, GuestError, GuestTimeout
from emu.fittings import VsockNetwork
from emu.vsock_calls import GuestCalls
from emu.vsock_sockets import LAST_PORT, Caller, SocketFile, SocketStream, log

__all__ = ["Drive", "VsockHost", "VsockListener", "VsockStream"]

T = TypeVar("T")
Drive = Callable[[Callable[[], bool], float | None], bool]
"""Runs the guest until a condition holds or so many host seconds are over; whether it holds."""

PIPELINE = 128                      # connections that wait for `VsockListener.accept`
ISOLATED = "the machine is out of its network"
RETRY_NS = 10_000_000               # after the host was too busy to accept


class VsockHost:
    """What the guest's vsock device is connected to; it lives as long as the machine, and through its reboots.

    Args:
        files: watches sockets on the machine's thread.
        drive: `Machine.drive`.
        place: path of the socket file for programs of the host, or the network of which this machine is one, with the
            socket file there; None for Python only.

    Raises:
        EmuError: the socket file cannot be made.

    Attributes:
        path: of the socket file.
    """

    def __init__(self, files: Files, drive: Drive, place: Path | VsockNetwork | None = None) -> None:
        self._files = files
        self._drive = drive
        self._device: Vsock | None = None
        self._clock: Clock | None = None
        self._timer: Timer | None = None
        self._listeners: dict[int, VsockListener] = {}
        self._callers: set[Caller] = set()
        self._settle(place)

    def _settle(self, place: Path | VsockNetwork | None) -> None:
        """Be there from now on."""
        self._isolated = False
        network = place if isinstance(place, VsockNetwork) else None
        self.path = place.path(place.cid) if isinstance(place, VsockNetwork) else place
        self._calls = GuestCalls(self._files, self, self.path, network)
        self._file = SocketFile(self.path) if self.path else None

    def device(self, clock: Clock, state: VsockState) -> Vsock:
        """A device for a board; the one for the board before has to be closed."""
        self._clock = clock
        self._timer = clock.timer(self._again)
        self._device = Vsock(self, clock, state)
        self._calls.forget_busy()
        self._watch_file()
        return self._device

    def close(self) -> None:
        """Listen no more, and remove the socket file; the device is closed by its board."""
        for listener in list(self._listeners.values()):
            listener.close()
        for caller in list(self._callers):
            caller.closed("the machine ended")
        self._calls.close()
        if self._file:
            self._files.forget(self._file.sock.fileno())
            self._file.close()
            self._file = None

    def forked(self, place: Path | VsockNetwork | None) -> None:
        """This process is a copy: have a place of its own, or none, and let go of the original's sockets.

        The device's connections have to be ended before.

        Raises:
            EmuError: the socket file cannot be made.
        """
        for listener in list(self._listeners.values()):
            listener.close()
        for caller in list(self._callers):
            caller.closed("the machine was forked")
        self._calls.close()
        if self._file:
            self._file.sock.close()         # the file itself is the original's
        self._settle(place)
        self._watch_file()

    # -- for Python ----------------------------------------------------------------------------------------------

    def connect(self, port: int, timeout: float | None = None) -> VsockStream:
        """Connect to a program of the guest, which runs meanwhile.

        Args:
            port: that the program listens on.
            timeout: host seconds; without one it is the device's 8 s of patience.

        Raises:
            EmuError: no such port, or no file descriptor is left.
            GuestError: nobody listens there, or the guest has no driver.
            GuestTimeout, GuestStopped: no answer in time; the guest stopped before.
        """
        if not 0 <= port <= LAST_PORT:
            raise EmuError(f"vsock: no port {port}; ports are 0 to {LAST_PORT}")
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise EmuError(f"vsock: no socket: {error.strerror}") from None
        failures: list[str] = []
        stream = SocketStream(self._files, theirs, f"Python to guest port {port}", failures.append)
        try:
            connection = self._ask(port, stream)
        except NotReady as error:
            stream.closed(str(error))
            ours.close()
            raise GuestError(f"vsock: guest port {port}: {error}") from None
        try:
            if not self._drive(lambda: connection.state is not State.ASKED_BY_HOST, timeout):
                raise GuestTimeout(f"vsock: guest port {port}: no answer in {timeout} s")
            if failures and not stream.is_established:
                raise GuestError(f"vsock: guest port {port}: {failures[0]}")
        except BaseException:
            ours.close()
            self._abandon(connection)
            raise
        return VsockStream(ours, self._drive, port, connection.host_port)

    def listen(self, port: int) -> VsockListener:
        """Let programs of the guest connect to a port of the host's; it goes before a socket file.

        Raises:
            EmuError: no such port, or it is taken.
        """
        if not 0 <= port <= LAST_PORT:
            raise EmuError(f"vsock: no port {port}; ports are 0 to {LAST_PORT}")
        if port in self._listeners:
            raise EmuError(f"vsock: port {port} of the host is listened on already")
        listener = self._listeners[port] = VsockListener(port, self._drive, self._forget_listener)
        return listener

    def _forget_listener(self, listener: VsockListener) -> None:
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]

    # -- from the host -------------------------------------------------------------------------------------------

    def _ask(self, port: int, stream: SocketStream, caller: tuple[int, int] | None = None) -> Connection:
        if self._device is None:
            raise NotReady("the guest has no vsock device")
        if caller and self._isolated:
            raise NotReady(ISOLATED)
        return self._device.connect(port, stream, caller)

    def isolate(self, isolated: bool) -> None:
        """Take the machine out of its network, where its connections end at once, or put it back."""
        self._isolated = isolated
        if isolated and self._device:
            self._device.abandon_others(ISOLATED)

    def missing(self) -> str:
        """Why nobody can connect to the guest; nothing if one can."""
        if self._isolated:
            return ISOLATED
        return self._device.obstacle() if self._device else "the guest has no vsock device"

    def _abandon(self, connection: Connection) -> None:
        if self._device:
            self._device.abandon(connection, "given up by the host")

    def _watch_file(self) -> None:
        if self._file:
            self._files.watch(self._file.sock.fileno(), self._called)

    def _called(self) -> None:
        """A program of the host has connected."""
        assert self._file
        try:
            sock, _address = self._file.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:        # no file descriptor left: it would be readable for ever
            log.warning("%s: %s", self._file.path, error.strerror)
            self._files.forget(self._file.sock.fileno())
            self.later()
            return
        self._callers.add(Caller(self._files, sock, self._ask, self._callers.discard))

    # -- from the guest (devices.virtio.vsock.Backend) -----------------------------------------------------------

    def open(self, connection: Connection) -> None:
        """The guest wants to connect: to Python if that listens, else to a socket file."""
        is_local = connection.host_cid == HOST_CID
        listener = self._listeners.get(connection.host_port) if is_local else None
        if self._isolated and not is_local:
            self.refuse(connection, ISOLATED)
        elif listener is None:
            self._calls.dial(connection)
        elif len(listener.waiting) >= PIPELINE:
            self.refuse(connection, f"{PIPELINE} connections wait to be accepted by Python")
        else:
            try:
                ours, theirs = socket.socketpair()
            except OSError as error:
                self.refuse(connection, f"no socket: {error.strerror}")
                return
            listener.waiting.append(VsockStream(ours, self._drive, connection.guest_port, connection.host_port))
            name = f"guest to Python's port {listener.port} (from {connection.guest_port})"
            self.accept(connection, SocketStream(self._files, theirs, name, lambda _reason: None))

    def note(self, text: str) -> None:
        """Log what the device has to say."""
        log.debug("%s", text)

    # -- answers to the guest (emu.vsock_calls.Answers) ----------------------------------------------------------

    def accept(self, connection: Connection, stream: SocketStream) -> None:
        """The guest's connection has come about."""
        assert self._device
        stream.established()
        self._device.accept(connection, stream)

    def refuse(self, connection: Connection, reason: str) -> None:
        """It has not."""
        assert self._device
        port = "host port" if connection.host_cid == HOST_CID else f"CID {connection.host_cid} port"
        log.info("guest port %d to %s %d: refused: %s", connection.guest_port, port, connection.host_port, reason)
        self._device.refuse(connection, reason)

    def later(self) -> None:
        """Try again in a moment what there is no room for."""
        assert self._clock and self._timer
        if self._timer.deadline_ns is None:
            self._timer.arm(self._clock.now_ns() + RETRY_NS)

    def _again(self) -> None:
        self._watch_file()
        self._calls.again()


class VsockStream:
    """A connection to a program of the guest, as a socket that runs the guest while it waits.

    For other threads there are the socket files: only the machine's own thread can run the guest.

    Attributes:
        guest_port, host_port: its ends.
    """

    def __init__(self, sock: socket.socket, drive: Drive, guest_port: int, host_port: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._drive = drive
        self.guest_port = guest_port
        self.host_port = host_port

    def recv(self, size: int, timeout: float | None = None) -> bytes:
        """Read what is there, at least one byte.

        Args:
            size: most bytes to read.
            timeout: host seconds, None for ever.

        Returns:
            The bytes; none at the end of the stream.

        Raises:
            GuestTimeout, GuestStopped: nothing came in time; the guest stopped before.
            OSError: as of a socket.
        """
        return self._wait(lambda: self._sock.recv(size), timeout)

    def send(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> int:
        """Write at least one byte; how many.

        Args:
            data: what to write.
            timeout: host seconds, None for ever.

        Raises:
            GuestTimeout, GuestStopped: nothing was taken in time; the guest stopped before.
            OSError: as of a socket.
        """
        return self._wait(lambda: self._sock.send(data, socket.MSG_NOSIGNAL), timeout)

    def sendall(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Write everything; arguments and errors as of `send`, the time being for each part of it."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view, timeout) :]

    def shutdown(self, how: int) -> None:
        """End one direction, or both: socket.SHUT_RD, SHUT_WR, SHUT_RDWR. The guest hears of it as it runs on."""
        self._sock.shutdown(how)

    def fileno(self) -> int:
        """The socket, -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """End it; bytes written before still go to the guest as it runs on."""
        self._sock.close()

    def __enter__(self) -> VsockStream:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _wait(self, attempt: Callable[[], T], timeout: float | None) -> T:
        done: list[T] = []

        def succeeded() -> bool:
            try:
                if not done:                # asked again after that: once is enough
                    done.append(attempt())
            except BlockingIOError:
                return False
            return True

        if not succeeded() and not self._drive(succeeded, timeout):
            raise GuestTimeout(f"vsock: guest port {self.guest_port}: nothing in {timeout} s")
        return done[0]


class VsockListener:
    """A port of the host's that Python listens on.

    Attributes:
        port: its number.
    """

    def __init__(self, port: int, drive: Drive, closed: Callable[[VsockListener], None]) -> None:
        self.port = port
        self._drive = drive
        self._closed = closed
        self.waiting: deque[VsockStream] = deque()

    def accept(self, timeout: float | None = None) -> VsockStream:
        """Run the guest until one of its programs has connected.

        Args:
            timeout: host seconds, None for ever.

        Raises:
            GuestTimeout, GuestStopped: none has; the guest stopped before.
        """
        if not self._drive(lambda: bool(self.waiting), timeout):
            raise GuestTimeout(f"vsock: nobody connected to port {self.port} of the host in {timeout} s")
        return self.waiting.popleft()

    def close(self) -> None:
        """Listen no more; what waits for `accept` is closed."""
        self._closed(self)
        while self.waiting:
            self.waiting.popleft().close()

    def __enter__(self) -> VsockListener:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
