"""Frames over a socket between processes of this host: a message as JSON, bytes, and file descriptors.

A frame is two numbers of 32 bits, the lengths of the JSON and of the bytes, and those two. Descriptors go along with a
frame's first byte (SCM_RIGHTS).
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from emu.errors import BadSnapshot, EmuError
from emu.snapshot.codec import decode, encode

__all__ = ["Frame", "Wire", "WireError"]

HEADER = struct.Struct("<II")
CHUNK = 256 << 10
LARGEST = 1 << 30               # bytes of either part of a frame
MOST_FDS = 64                   # that come with one read

M = TypeVar("M")


class WireError(EmuError):
    """The other end sent what no such process sends."""


@dataclass(frozen=True)
class Frame(Generic[M]):
    """A message with what came along; descriptors only once they were taken (`Wire.take_fds`)."""

    message: M
    data: bytes = b""
    fds: tuple[int, ...] = ()


class Wire(Generic[M]):
    """One end.

    Args:
        sock: a stream socket, taken over.
        kind: the class of what is received.
    """

    def __init__(self, sock: socket.socket, kind: type[M]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._kind = kind
        self._partial = bytearray()
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def send(self, message: object, data: bytes | memoryview = b"", fds: Sequence[int] = ()) -> None:
        """Send a frame; waits while the other end takes nothing.

        Raises:
            OSError: the other end has gone.
        """
        text = json.dumps(encode(message), separators=(",", ":")).encode()
        head = memoryview(HEADER.pack(len(text), len(data)) + text)
        if fds:
            head = head[self._attempt(partial(socket.send_fds, self._sock, [head], list(fds), socket.MSG_NOSIGNAL)) :]
        for part in head, memoryview(data):
            while part:
                part = part[self._attempt(partial(self._sock.send, part, socket.MSG_NOSIGNAL)) :]

    def _attempt(self, send: Callable[[], int]) -> int:
        while True:
            try:
                return send()
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._sock, select.POLLOUT)
                poll.poll()

    def receive(self) -> Iterator[Frame[M]]:
        """Frames that have come, without waiting.

        Raises:
            EOFError: the other end has gone, and all that it sent was taken.
            WireError: see there.
        """
        ended = self._read()
        while (frame := self._next()) is not None:
            yield frame
        if ended:
            raise EOFError

    def wait(self) -> Frame[M]:
        """The next frame; errors as `receive`."""
        while True:
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            poll.poll()
            for frame in self.receive():
                return frame

    def _read(self) -> bool:
        """Take what is there; whether that is the end."""
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, CHUNK, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except OSError:
                return True
            self._fds.extend(fds)
            self._partial += data
            if len(data) < CHUNK:
                return not data
            if len(self._partial) > CHUNK:
                return False

    def _next(self) -> Frame[M] | None:
        if len(self._partial) < HEADER.size:
            return None
        text_size, size = HEADER.unpack_from(self._partial)
        if text_size > LARGEST or size > LARGEST:
            raise WireError("a process of a machine sent a frame that is too long")
        start = HEADER.size + text_size
        if len(self._partial) < start + size:
            return None
        text, data = bytes(self._partial[HEADER.size : start]), bytes(self._partial[start : start + size])
        del self._partial[: start + size]
        try:
            message = decode(self._kind, json.loads(text))
        except (BadSnapshot, ValueError, RecursionError) as error:
            raise WireError(f"a process of a machine sent what is no message: {error}") from None
        return Frame(message, data)

    def take_fds(self, count: int) -> list[int]:
        """Descriptors that came with the frame received last.

        Raises:
            WireError: there are not as many.
        """
        if len(self._fds) < count:
            raise WireError("a process of a machine sent no descriptor where one was due")
        return [self._fds.popleft() for _ in range(count)]

    def shut_down(self) -> None:
        """Both ends have no more to say; who waits for this one finds the end."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and descriptors that nobody took."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())
