"""Frames over a socket between processes of this host: a message as JSON, bytes, and file descriptors.

A frame is two numbers of 32 bits, the lengths of the JSON and of the bytes, and those two. Descriptors go along with a
frame's first byte (SCM_RIGHTS).
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Generic, TypeVar

from devices.frozen import frozen
from emu.errors import BadSnapshot, EmuError
from emu.snapshot.codec import decode, encode

__all__ = ["LONGEST_SLEEP_S", "Frame", "Wire", "WireError", "wait_readable"]

HEADER = struct.Struct("<II")
FIRST_CHUNK = 8 << 10           # bytes that are read at a time: most frames are short,
CHUNK = 256 << 10               # and the rest of a long one; more would keep other work waiting
LONGEST_TEXT = 64 << 20         # bytes of JSON
LARGEST = 1 << 30               # bytes beside it
LONGEST_SLEEP_S = 0.5           # a signal just before the sleep is not noticed by it
FD = struct.Struct("i")
FDS_ROOM = socket.CMSG_SPACE(64 * FD.size)      # for what comes with one read

M = TypeVar("M")


class WireError(EmuError):
    """The other end sent what no such process sends."""


@frozen
class Frame(Generic[M]):
    """A message with what came along; whoever has it has to close the descriptors."""

    message: M
    data: bytes = b""
    fds: tuple[int, ...] = ()

    def drop(self) -> None:
        """Nobody wants it."""
        for fd in self.fds:
            os.close(fd)


class Wire(Generic[M]):
    """One end.

    A thread that is interrupted while it waits leaves whole what it has read and what it still has to send; while it
    does either, it must not be.

    Args:
        sock: a stream socket, taken over.
        kind: the class of what is received.
    """

    def __init__(self, sock: socket.socket, kind: type[M]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._kind = kind
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._partial = bytearray()
        self._read_size = 0             # bytes, ever
        self._taken_size = 0
        self._fds: deque[tuple[int, tuple[int, ...]]] = deque()     # after how many bytes, and which

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    # -- out -------------------------------------------------------------------------------------------------------

    def post(self, message: object, data: bytes | memoryview = b"", fds: Sequence[int] = ()) -> bool:
        """Send a frame as far as the other end takes it, the rest by `flush`.

        Args:
            message: a dataclass, as `emu.snapshot.codec` has them.
            data: beside it.
            fds: descriptors to go along, taken over; without them if too many are on their way in all (ETOOMANYREFS).

        Returns:
            Whether all is sent.

        Raises:
            OSError: the other end has gone.
            EmuError: it is longer than a frame can be.
        """
        text = json.dumps(encode(message), separators=(",", ":")).encode()
        if len(text) > LONGEST_TEXT or len(data) > LARGEST:
            raise EmuError(f"{max(len(text), len(data)) >> 20} MiB are more than can go to another process at once")
        self._unsent.append((memoryview(HEADER.pack(len(text), len(data)) + text), tuple(fds)))
        if data:
            self._unsent.append((memoryview(data), ()))
        return self.flush()

    def flush(self) -> bool:
        """Send on; whether all is sent now. Raises `OSError` as `post` does."""
        while self._unsent:
            part, fds = self._unsent[0]
            try:
                sent = self._send(part, fds)
            except BlockingIOError:
                return False
            for fd in fds:
                os.close(fd)
            if sent < len(part):
                self._unsent[0] = part[sent:], ()
            else:
                self._unsent.popleft()
        return True

    def _send(self, part: memoryview, fds: tuple[int, ...]) -> int:
        try:
            if fds:
                return socket.send_fds(self._sock, [part], fds, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
        return self._sock.send(part, socket.MSG_NOSIGNAL)

    def wait_writable(self) -> None:
        """Wait until more can be sent, or the other end has gone."""
        _poll(self._sock.fileno(), select.POLLOUT, None)

    # -- in --------------------------------------------------------------------------------------------------------

    def receive(self) -> Iterator[Frame[M]]:
        """Frames that have come, without waiting.

        Raises:
            EOFError: the other end has gone, and all that it sent was taken.
            WireError: see there.
        """
        ended = self._read()
        if len(self._partial) == FIRST_CHUNK:
            ended = self._read()
        while (frame := self._next()) is not None:
            yield frame
        if ended:
            raise EOFError

    def wait(self) -> Frame[M]:
        """The next frame; errors as `receive`."""
        while (frame := self._next()) is None:
            wait_readable(self._sock.fileno(), None)
            if self._read() and (frame := self._next()) is None:
                raise EOFError
        return frame

    def _read(self) -> bool:
        """Take what is there; whether that is the end."""
        if len(self._fds) > 1:                  # of a frame that is not whole: there is no end to them
            raise WireError("a process of a machine sent descriptors in the midst of a frame")
        try:            # not recv_fds, which has Python 3.11 forget the flags
            size = CHUNK if self._partial else FIRST_CHUNK
            data, extra, flags, _address = self._sock.recvmsg(size, FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._partial += data
        self._read_size += len(data)
        if fds := tuple(fd for _level, _type, numbers in extra for (fd,) in FD.iter_unpack(numbers)):
            self._keep(fds, bool(flags & socket.MSG_CTRUNC))
        return not data

    def _keep(self, fds: tuple[int, ...], some_are_lost: bool) -> None:
        """Descriptors: they came with the last bytes that were read (unix(7)), which are of the frame that has them."""
        if some_are_lost:
            Frame(None, fds=fds).drop()
        else:
            self._fds.append((self._read_size, fds))

    def _next(self) -> Frame[M] | None:
        if len(self._partial) < HEADER.size:
            return None
        text_size, size = HEADER.unpack_from(self._partial)
        if text_size > LONGEST_TEXT or size > LARGEST:
            raise WireError("a process of a machine sent a frame that is too long")
        start = HEADER.size + text_size
        if len(self._partial) < start + size:
            return None
        text, data = bytes(self._partial[HEADER.size : start]), bytes(self._partial[start : start + size])
        del self._partial[: start + size]
        self._taken_size += start + size
        fds: tuple[int, ...] = ()
        while self._fds and self._fds[0][0] <= self._taken_size:
            fds += self._fds.popleft()[1]
        try:
            message = decode(self._kind, json.loads(text))
        except (BadSnapshot, ValueError, RecursionError) as error:
            Frame(None, fds=fds).drop()
            raise WireError(f"a process of a machine sent what is no message: {error}") from None
        return Frame(message, data, fds)

    def wait_for(self, word: bytes) -> bool:
        """Wait for bytes that are no frame, before any has come; whether they came, and not the end."""
        fd = self._sock.fileno()
        os.set_blocking(fd, True)
        came = os.read(fd, len(word))
        os.set_blocking(fd, False)
        return came == word

    # -- the end ---------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Both ends have no more to say; who waits for this one finds the end."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def exchange(self, sock: int) -> None:
        """Go on with another socket, under the number of the one that there was: nothing said there matters any more.

        Args:
            sock: its descriptor, taken over.
        """
        fd = self._sock.fileno()
        os.dup2(sock, fd, inheritable=False)
        os.close(sock)
        os.set_blocking(fd, False)
        self._drop_fds()
        self._partial.clear()
        self._taken_size = self._read_size

    def close(self) -> None:
        """Close the socket, and descriptors that were not sent or that nobody took."""
        self._sock.close()
        self._drop_fds()

    def _drop_fds(self) -> None:
        for _, fds in (*self._fds, *self._unsent):
            Frame(None, fds=fds).drop()
        self._fds.clear()
        self._unsent.clear()


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Wait until a file can be read, so many seconds, None for ever; whether it can."""
    return _poll(fd, select.POLLIN, timeout)


def _poll(fd: int, events: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    end = None if timeout is None else monotonic() + timeout
    while True:
        left = LONGEST_SLEEP_S if end is None else max(end - monotonic(), 0)
        if poll.poll(1000 * min(left, LONGEST_SLEEP_S)):
            return True
        if end is not None and left <= LONGEST_SLEEP_S:
            return False
