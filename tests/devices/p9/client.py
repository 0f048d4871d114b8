"""A guest's side of 9P2000.L, as small as the tests can have it; without a virtqueue."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.p9 import messages as m
from devices.p9.codec import HEADER, QID
from devices.p9.export import Export, Limits
from devices.p9.mapping import Security
from devices.p9.saved import P9State
from devices.p9.server import P9Server
from devices.virtio.queue import Chain

__all__ = ["ROOT", "Entry", "Guest", "chain_of"]

ROOT = 0                                # the fid that `Guest` attaches
FIRST_FREE = 100
MSIZE = 128 << 10
TAG = 7
ENTRY = struct.Struct("<13sQBH")


@dataclass(frozen=True)
class Entry:
    """One entry of a directory."""

    name: bytes
    type: int
    offset: int
    qid: tuple[int, int, int]


def chain_of(readable: list[bytes], writable: list[int]) -> Chain:
    """A chain with these buffers to read, and buffers of these sizes to write."""
    inputs = [memoryview(part) for part in readable if part]
    outputs = [memoryview(bytearray(size)) for size in writable if size]
    sizes = [*map(len, outputs)]
    return Chain(0, inputs, outputs, [0] * len(outputs), sizes, sum(map(len, inputs)), sum(sizes))


servers: list[P9Server] = []
"""Those of the test that runs; tests/devices/p9/conftest.py closes them."""


class Guest:
    """Talks to a server of its own; an error reply is raised as `OSError`.

    Args:
        path: the directory shared.
        security: how owners and modes are kept.
        read_only: of the export.
        state: of a server to go on with; without one, the guest attaches ROOT.
        limits: of the server.
    """

    def __init__(
        self,
        path: Path,
        security: Security = Security.NONE,
        read_only: bool = False,
        state: P9State | None = None,
        limits: Limits | None = None,
        uid: int = 0,
    ) -> None:
        self.export = Export(path, "test", read_only, security)
        self.server = P9Server(self.export, state, limits)
        servers.append(self.server)
        self.fid = FIRST_FREE
        if state is None:
            self.version()
            self.attach(ROOT, uid)

    # --- frames -------------------------------------------------------------------------------------------------

    def raw(self, readable: list[bytes], writable: list[int]) -> bytes:
        """The reply's bytes to a request's bytes."""
        chain = chain_of(readable, writable)
        written = self.server.handle(chain)
        return b"".join(bytes(view) for view in chain.writable)[:written]

    def ask(self, request: Any, data: bytes = b"", room: int = MSIZE) -> tuple[Any, bytes]:
        """Send a message, with data behind it; the reply, and what is behind it."""
        type_ = m.TYPE_OF[type(request)]
        reply = self.raw([m.encode(type_, TAG, request, len(data)), data], [room])
        size, reply_type, tag = HEADER.unpack_from(reply)
        assert (size, tag) == (len(reply), TAG)
        message = m.decode(reply_type, reply)
        if isinstance(message, m.Rlerror):
            raise OSError(message.ecode, os.strerror(message.ecode))
        assert reply_type == type_ + 1
        return message, reply[len(m.encode(reply_type, TAG, message)) :]

    def send(self, request: Any) -> Any:
        """Send a message; the reply."""
        return self.ask(request)[0]

    def next_fid(self) -> int:
        """A fid not in use."""
        self.fid += 1
        return self.fid

    # --- messages -----------------------------------------------------------------------------------------------

    def version(self, msize: int = MSIZE, version: bytes = m.VERSION) -> Any:
        return self.send(m.Tversion(msize, version))

    def attach(self, fid: int, uid: int = 0) -> Any:
        return self.send(m.Tattach(fid, m.NO_FID, b"root", b"/", uid))

    def walk(self, *names: bytes, start: int = ROOT, fid: int | None = None) -> int:
        """A new fid of what the names lead to; FileNotFoundError if not all of them do."""
        new = self.next_fid() if fid is None else fid
        reply = self.send(m.Twalk(start, new, names))
        if len(reply.qids) < len(names):
            raise FileNotFoundError(2, "only part of the way", names)
        return new

    def clunk(self, fid: int) -> None:
        self.send(m.Tclunk(fid))

    def open(self, *names: bytes, flags: int = os.O_RDONLY, start: int = ROOT) -> int:
        """A new open fid."""
        fid = self.walk(*names, start=start)
        self.send(m.Tlopen(fid, flags))
        return fid

    def create(self, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644, start: int = ROOT, gid: int = 0) -> int:
        """A new fid of a new file, open."""
        fid = self.walk(start=start)
        self.send(m.Tlcreate(fid, name, flags, mode, gid))
        return fid

    def read(self, fid: int, offset: int = 0, size: int = 1 << 16) -> bytes:
        message, data = self.ask(m.Tread(fid, offset, size))
        assert message.size == len(data)
        return data

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        return int(self.ask(m.Twrite(fid, offset, len(data)), data)[0].size)

    def content(self, *names: bytes) -> bytes:
        """What is in a file, opened for it."""
        fid = self.open(*names)
        try:
            return self.read(fid)
        finally:
            self.clunk(fid)

    def stat(self, fid: int = ROOT) -> Any:
        return self.send(m.Tgetattr(fid, 0x7FF))

    def set(self, fid: int, valid: int, **values: int) -> None:
        """Tsetattr of what is given; the rest is zero."""
        empty = dict.fromkeys(m.Tsetattr._fields, 0)
        self.send(m.Tsetattr(**{**empty, "fid": fid, "valid": valid, **values}))

    def entries(self, fid: int, size: int = 1 << 16, offset: int = 0) -> list[Entry]:
        """What one Treaddir gives."""
        _, data = self.ask(m.Treaddir(fid, offset, size))
        found = []
        at = 0
        while at < len(data):
            qid, next_offset, type_, length = ENTRY.unpack_from(data, at)
            at += ENTRY.size + length
            found.append(Entry(data[at - length : at], type_, next_offset, QID.unpack(qid)))
        return found

    def names(self, *path: bytes, size: int = 1 << 16) -> list[bytes]:
        """All names in a directory, in its order, without the dots."""
        fid = self.open(*path)
        found: list[Entry] = []
        while part := self.entries(fid, size, found[-1].offset if found else 0):
            found += part
        self.clunk(fid)
        return [entry.name for entry in found if entry.name not in (b".", b"..")]
