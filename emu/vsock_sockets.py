"""The sockets at the host's end of virtio-vsock connections, and the files of those that are listened on."""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from devices import Files
from devices.virtio.vsock import Connection, NotReady
from emu.errors import EmuError
from emu.fittings import FIRST_CID, LAST_CID

__all__ = ["LAST_PORT", "LONGEST_PATH", "Caller", "GreetingStream", "SocketFile", "SocketStream", "log"]

Callback = Callable[[], None]

LAST_PORT = 0xFFFF_FFFE             # the one after it is VMADDR_PORT_ANY
LONGEST_PATH = 107 - len("_4294967295")         # sun_path without its end; PATH_N has to fit, too
MOST_BUFFERS = 1024                 # IOV_MAX
GREETING = re.compile(rb"CONNECT ([0-9]{1,10})(?: FROM ([0-9]{1,10}) ([0-9]{1,10}))?\n", re.IGNORECASE)
LONGEST_GREETING = 48
PIPELINE = 128                      # programs that wait to be accepted

log = logging.getLogger("emu.vsock")


class SocketStream:
    """The host's end of a connection: a socket (devices.virtio.vsock.Stream).

    Args:
        files: watches the socket.
        sock: taken over.
        name: of what is at the socket's other end, for the log.
        finished: called with the reason when the connection is over.

    Attributes:
        is_established: both sides have agreed to the connection.
        name: as handed in.
        failure_level: at which is logged that it did not come about.
    """

    failure_level = logging.INFO

    def __init__(self, files: Files, sock: socket.socket, name: str, finished: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self._files = files
        self._sock = sock
        self._finished = finished
        self.is_established = False
        self.name = name

    def established(self) -> None:
        """Both sides agree."""
        self.is_established = True
        log.debug("%s: connected", self.name)

    def send(self, views: Sequence[memoryview]) -> int:
        """Write what the socket takes."""
        try:
            if len(views) == 1:
                return self._sock.send(views[0], socket.MSG_NOSIGNAL)
            return self._sock.sendmsg(views[:MOST_BUFFERS], [], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def receive(self, views: Sequence[memoryview]) -> int | None:
        """Read what the socket has."""
        try:
            if len(views) == 1:
                return self._sock.recv_into(views[0])
            return self._sock.recvmsg_into(views[:MOST_BUFFERS])[0]
        except BlockingIOError:
            return None

    def hung_up(self) -> bool:
        """Whether the other end is closed, not only shut down for writing."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return bool(poll.poll(0))

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """Have the machine's thread call back."""
        if readable or writable:
            self._files.watch(self._sock.fileno(), readable, writable)
        else:
            self._files.forget(self._sock.fileno())

    def end_sending(self) -> None:
        """The other end reads the end of the stream."""
        self._shutdown(socket.SHUT_WR)

    def end_receiving(self) -> None:
        """The other end cannot write any more."""
        self._shutdown(socket.SHUT_RD)

    def _shutdown(self, how: int) -> None:
        try:
            self._sock.shutdown(how)
        except OSError as error:
            log.debug("%s: shutdown: %s", self.name, error.strerror)

    def closed(self, reason: str) -> None:
        """It is over, or did not come about."""
        log.log(logging.DEBUG if self.is_established else self.failure_level, "%s: %s", self.name, reason)
        self._files.forget(self._sock.fileno())
        self._sock.close()
        self._finished(reason)


class GreetingStream(SocketStream):
    """A socket whose other end has to send a line before anything else.

    Attributes:
        greeting: the line with its newline; what there was of it, if it ended without.
    """

    greeting = b""

    def _greet(self) -> None:
        """Read the line, and not a byte more."""
        try:
            seen = self._sock.recv(LONGEST_GREETING - len(self.greeting), socket.MSG_PEEK)
            line, newline, _rest = seen.partition(b"\n")
            self.greeting += self._sock.recv(len(line + newline)) if seen else b""
        except BlockingIOError:
            return
        except OSError as error:
            self.closed(f"gone without a word: {error.strerror}")
            return
        if newline or not seen or len(self.greeting) >= LONGEST_GREETING:
            self._greeted()

    def _greeted(self) -> None:
        """The line is there, or will never be."""
        raise NotImplementedError


class Caller(GreetingStream):
    """A program of the host, or another machine, that has connected to PATH; first it has to say which port it wants.

    Args:
        files: watches the socket.
        sock: taken over.
        ask: asks the guest for a connection to a port; given CID and port of another machine that wants it.
        finished: called when it is over.
    """

    def __init__(
        self,
        files: Files,
        sock: socket.socket,
        ask: Callable[[int, SocketStream, tuple[int, int] | None], Connection],
        finished: Callable[[Caller], None],
    ) -> None:
        super().__init__(files, sock, "a program of the host", lambda reason: finished(self))
        self._ask = ask
        self._connection: Connection | None = None
        self.watch(self._greet, None)

    def _greeted(self) -> None:
        found = GREETING.fullmatch(self.greeting)
        port, *caller = (int(number) for number in found.groups() if number) if found else (LAST_PORT + 1,)
        cid, caller_port = caller or (FIRST_CID, 0)
        if port > LAST_PORT or caller_port > LAST_PORT or not FIRST_CID <= cid <= LAST_CID:
            self.closed(f"sent {self.greeting!r} where CONNECT and a port were expected")
            return
        self.watch(None, None)
        self.name = f"{f'CID {cid} port {caller_port}' if caller else 'a program of the host'} to guest port {port}"
        try:
            self._connection = self._ask(port, self, (cid, caller_port) if caller else None)
        except NotReady as error:
            self.closed(str(error))

    def established(self) -> None:
        """Tell the program; nothing was sent to it before, so that the line fits."""
        super().established()
        assert self._connection
        try:
            self._sock.send(b"OK %d\n" % self._connection.host_port, socket.MSG_NOSIGNAL)
        except OSError as error:
            log.info("%s: gone before it was told: %s", self.name, error.strerror)


class SocketFile:
    """A socket file that is listened on, and removed in the end.

    Args:
        path: where; a socket file that nobody listens on is replaced.
        what: it is for, in messages.

    Raises:
        EmuError: the path is too long, taken by something else, or cannot be made.
    """

    def __init__(self, path: Path, what: str = "vsock") -> None:
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise EmuError(f"{what}: {path}: a socket's path can have {LONGEST_PATH} bytes")
        self.path = path
        self._what = what
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._make_way()
            self.sock.bind(os.fspath(path))
            self.sock.listen(PIPELINE)
            self._identity = _identity(path)
        except OSError as error:
            self.sock.close()
            raise EmuError(f"{what}: {path}: {error.strerror or error}") from None
        except EmuError:
            self.sock.close()
            raise

    def _make_way(self) -> None:
        """Remove what a process that died has left."""
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise EmuError(f"{self._what}: {self.path}: exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(os.fspath(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except BlockingIOError:
                pass            # somebody listens, but is slow to accept
        raise EmuError(f"{self._what}: {self.path}: another program listens there")

    def close(self) -> None:
        """Listen no more, and remove the file, unless another one stands there by now."""
        self.sock.close()
        try:
            if _identity(self.path) == self._identity:
                self.path.unlink()
        except OSError as error:
            log.debug("%s: not removed: %s", self.path, error.strerror)


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
