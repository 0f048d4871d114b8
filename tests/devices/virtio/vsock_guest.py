"""What the vsock device is tested with: a guest that speaks packets, and streams and a backend without sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from devices.virtio.queue import RING_FEATURES
from devices.virtio.vsock import RX, TX, Connection, Vsock
from devices.virtio.vsock_connection import HEADER, HOST_CID, STREAM, Header, Op
from devices.virtio.vsock_state import VsockState
from tests.devices.fakes import FakeClock
from tests.devices.virtio.driver import EVERYTHING, Driver, FakeMemory

__all__ = ["GUEST_CID", "FakeBackend", "FakeStream", "Guest", "Packet", "make_guest"]

GUEST_CID = 52


@dataclass
class Packet:
    """A packet that the guest received."""

    header: Header
    data: bytes

    @property
    def summary(self) -> tuple[int, int, int]:
        """Operation, host port, guest port."""
        return self.header.op, self.header.src_port, self.header.dst_port


@dataclass
class FakeStream:
    """A host end that does what the test says, and remembers.

    Attributes:
        room: bytes that it takes before it is full.
        taken: what it took.
        waiting: what it has for the guest; `at_end` what comes after: None, "end" or "hang up".
        broken: the next `send` or `receive` fails.
        events: what it was told, in order.
    """

    room: int = 1 << 40
    taken: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)
    at_end: str | None = None
    broken: bool = False
    events: list[str] = field(default_factory=list)
    readable: Callable[[], None] | None = None
    writable: Callable[[], None] | None = None
    is_closed: bool = False

    def established(self) -> None:
        self.events.append("established")

    def send(self, views: Sequence[memoryview]) -> int:
        assert not self.is_closed
        if self.broken:
            raise BrokenPipeError
        count = 0
        for view in views:
            part = view[: self.room]
            self.taken += part
            self.room -= len(part)
            count += len(part)
        return count

    def receive(self, views: Sequence[memoryview]) -> int | None:
        assert not self.is_closed
        assert all(views), "a read of no bytes says nothing"
        if self.broken:
            raise ConnectionResetError
        if not self.waiting:
            return 0 if self.at_end else None
        count = 0
        for view in views:
            part = self.waiting[: len(view)]
            view[: len(part)] = part
            del self.waiting[: len(part)]
            count += len(part)
        return count

    def hung_up(self) -> bool:
        return self.at_end == "hang up"

    def watch(self, readable: Callable[[], None] | None, writable: Callable[[], None] | None) -> None:
        assert not self.is_closed
        self.readable, self.writable = readable, writable

    def end_sending(self) -> None:
        self.events.append("end sending")

    def end_receiving(self) -> None:
        self.events.append("end receiving")

    def closed(self, reason: str) -> None:
        assert not self.is_closed
        self.is_closed = True
        self.events.append(f"closed: {reason}")
        self.readable = self.writable = None

    # -- the test's side

    def poll(self) -> None:
        """What the machine's poller does, once."""
        if self.readable and (self.waiting or self.at_end or self.broken):
            self.readable()
        if self.writable and (self.room or self.broken):
            self.writable()

    def put(self, data: bytes) -> None:
        """Bytes for the guest."""
        self.waiting += data
        self.poll()

    def finish(self, how: str = "end") -> None:
        """No more bytes for the guest: "end", or "hang up" for both directions."""
        self.at_end = how
        if how == "hang up":
            self.broken = self.broken or bool(self.writable)
        self.poll()


@dataclass
class FakeBackend:
    """Accepts what the guest asks for at the ports in `streams`, keeps the rest in `asked`."""

    streams: dict[int, FakeStream] = field(default_factory=dict)
    asked: list[Connection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    device: Vsock | None = None

    def open(self, connection: Connection) -> None:
        assert self.device
        stream = self.streams.pop(connection.host_port, None)
        if stream:
            self.device.accept(connection, stream)
        else:
            self.asked.append(connection)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Guest:
    """The guest's driver.

    Args:
        backend, clock: what the device is built on.
        size: entries of each queue.
        buffers: size of each receive buffer; header and data in two, as older kernels have them, if `split`.
        features: what the driver accepts.
        device: built elsewhere; None for one of its own.
        memory: bytes of RAM.
    """

    def __init__(
        self,
        backend: FakeBackend,
        clock: FakeClock,
        size: int = 16,
        buffers: int = 4096,
        split: bool = False,
        features: int = EVERYTHING,
        device: Vsock | None = None,
        memory: int = 1 << 20,
    ) -> None:
        self.device = backend.device = device or Vsock(backend, clock, VsockState(GUEST_CID))
        self.backend = backend
        self.clock = clock
        self.driver = Driver(self.device, features, size, FakeMemory(memory))
        self.buffers = [HEADER.size, buffers - HEADER.size] if split else [buffers]
        self.given = 0
        self.size = size
        self.inbox: deque[Packet] = deque()

    def give(self, count: int | None = None) -> None:
        """Post receive buffers: so many, or as many as fit."""
        per_chain = 1 if self.driver.features & RING_FEATURES & (1 << 28) else len(self.buffers)
        wanted = self.size // per_chain - self.given if count is None else count
        for _ in range(wanted):
            self.given += 1
            self.driver.send(RX, (), self.buffers)

    def collect(self) -> None:
        """Take received packets out of the ring."""
        for used in self.driver.used(RX):
            self.given -= 1
            header = Header._make(HEADER.unpack(used.data[: HEADER.size]))
            assert header.len == len(used.data) - HEADER.size
            self.inbox.append(Packet(header, used.data[HEADER.size :]))

    def receive(self) -> list[Packet]:
        """All packets that the device has for the guest."""
        while True:
            self.give()
            before = len(self.inbox)
            self.collect()
            if len(self.inbox) == before:
                break
        found = list(self.inbox)
        self.inbox.clear()
        assert self.driver.failure is None, self.driver.failure
        return found

    def send(
        self,
        op: int,
        guest_port: int,
        host_port: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        buf_alloc: int = 1 << 18,
        fwd_cnt: int = 0,
        src_cid: int = GUEST_CID,
        dst_cid: int = HOST_CID,
        kind: int = STREAM,
        length: int | None = None,
    ) -> None:
        """Send a packet, and take the used buffer back if the device is done with it."""
        size = len(data) if length is None else length
        header = HEADER.pack(src_cid, dst_cid, guest_port, host_port, size, kind, op, flags, buf_alloc, fwd_cnt)
        self.driver.send(TX, [header, data] if data else [header])
        self.driver.used(TX)

    def open(
        self, stream: FakeStream, guest_port: int = 1000, host_port: int = 80,
        buf_alloc: int = 1 << 18, fwd_cnt: int = 0,
    ) -> None:
        """A connection that the guest asked for, and that is open."""
        self.backend.streams[host_port] = stream
        self.send(Op.REQUEST, guest_port, host_port, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt)
        assert [packet.summary for packet in self.receive()] == [(Op.RESPONSE, host_port, guest_port)]


def make_guest(size: int = 16, buffers: int = 4096, split: bool = False, features: int = EVERYTHING) -> Guest:
    """A guest with a device, backend and clock of its own."""
    return Guest(FakeBackend(), FakeClock(), size, buffers, split, features)
