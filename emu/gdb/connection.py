"""A gdb that is connected: its packets in, ours out, acknowledged until it asks to do without."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from emu.gdb.packets import Packet, PacketReader, Signal, frame

__all__ = ["Connection"]

READ_SIZE = 64 * 1024
MOST_UNSENT = 1 << 20                   # what a peer that does not read may leave with us

log = logging.getLogger("emu.gdb")


class Connection:
    """A socket of packets.

    Args:
        watch, forget: as `Machine.watch_fd` and `unwatch_fd`.
        sock: taken over.
        received: called with each packet's content.
        interrupted: called when gdb's user has pressed Ctrl-C.
        closed: called once, when it is over.

    Attributes:
        acknowledges: each packet is answered with a `+` or a `-`.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None], Callable[[], None] | None], None],
        forget: Callable[[int], None],
        sock: socket.socket,
        received: Callable[[Packet], None],
        interrupted: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)      # else each answer waits for 40 ms
        self._watch, self._forget, self._sock = watch, forget, sock
        self._received, self._interrupted, self._closed = received, interrupted, closed
        self._reader = PacketReader()
        self._unsent = b""
        self._last = b""                # packet, to be sent again if it got lost
        self.acknowledges = True
        self.is_open = True
        watch(sock.fileno(), self._readable, None)

    def send(self, content: bytes) -> None:
        """Send a packet."""
        self._last = frame(content)
        self._send(self._last)

    def _send(self, data: bytes) -> None:
        if not self.is_open:
            return
        self._unsent += data
        try:
            sent = self._sock.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(error.strerror or "gone")
            return
        self._unsent = self._unsent[sent:]
        if len(self._unsent) > MOST_UNSENT:
            self._lost("it does not read")
            return
        self._watch(self._sock.fileno(), self._readable, self._writable if self._unsent else None)

    def _writable(self) -> None:
        self._send(b"")

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or "gone")
            return
        if not data:
            self._lost("it has hung up")
            return
        for each in self._reader.feed(data):
            self._take(each)
            if not self.is_open:
                return

    def _take(self, each: Packet | Signal) -> None:
        if isinstance(each, Packet):
            if self.acknowledges:
                self._send(b"+")
            self._received(each)
        elif each is Signal.INTERRUPT:
            self._interrupted()
        elif self.acknowledges and each is Signal.BROKEN:
            self._send(b"-")
        elif self.acknowledges and each is Signal.NACK and self._last:
            self._send(self._last)

    def _lost(self, why: str) -> None:
        log.info("gdb: %s", why)
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self.is_open:
            self.is_open = False
            self._forget(self._sock.fileno())
            self._sock.close()
            self._closed()
