"""The vsock device against a model of a guest, and against rubbish; EMU_FUZZ_EXAMPLES makes the latter longer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from devices.virtio.vsock import EVENT, MOST_RESETS, RX, TX, NotReady
from devices.virtio.vsock_connection import (
    BUFFER_SIZE,
    HEADER,
    HOST_CID,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    STREAM,
    Op,
)
from tests.devices.fakes import FakeClock
from tests.devices.virtio.vsock_guest import GUEST_CID, FakeBackend, FakeStream, Guest, Packet, make_guest

FUZZ_EXAMPLES = int(os.environ.get("EMU_FUZZ_EXAMPLES", "60"))
PATTERN = bytes((i * 167 + (i >> 8)) & 0xFF for i in range(1 << 16)) * 3
GUEST_ROOM = 10_000                 # the model's buf_alloc


@dataclass(eq=False)
class Socket:
    """A connection as the guest knows it, with what a real one would check.

    Attributes:
        written: everything its program has sent; `sent` counts what has left in packets.
        unread: bytes received and not read by its program.
        read: everything its program has read.
        offered: everything the host's end was given.
        ended, peer_ended: SHUTDOWN flags sent and received.
    """

    guest_port: int
    host_port: int
    stream: FakeStream
    is_open: bool = False
    is_over: bool = False
    written: bytearray = field(default_factory=bytearray)
    unread: bytearray = field(default_factory=bytearray)
    read: bytearray = field(default_factory=bytearray)
    offered: bytearray = field(default_factory=bytearray)
    peer_buf_alloc: int = 0
    peer_fwd_cnt: int = 0
    ended: int = 0
    peer_ended: int = 0

    @property
    def credit(self) -> int:
        return self.peer_buf_alloc - (len(self.written) - self.peer_fwd_cnt)


class ModelGuest(RuleBasedStateMachine):
    """Programs of guest and host do as they like; no credit is overdrawn, no byte lost, doubled or moved."""

    sockets = Bundle("sockets")

    @initialize(
        size=st.sampled_from([2, 8, 32]), buffers=st.sampled_from([100, 1000, 4096]), split=st.booleans(),
    )
    def begin(self, size: int, buffers: int, split: bool) -> None:
        self.guest: Guest = make_guest(size=size, buffers=buffers, split=split)
        self.table: dict[tuple[int, int], Socket] = {}
        self.next_port = 1000
        self.pattern = 0

    def fresh(self, size: int) -> bytes:
        """Bytes that differ from those before, so that a move is seen."""
        start, self.pattern = self.pattern, self.pattern + size
        return PATTERN[start % 65_536 :][:size]

    def send(self, socket: Socket, op: int, data: bytes = b"", flags: int = 0) -> None:
        self.guest.send(
            op, socket.guest_port, socket.host_port, data, flags=flags, buf_alloc=GUEST_ROOM, fwd_cnt=len(socket.read)
        )

    # -- connections

    @rule(target=sockets, room=st.integers(0, 500))
    def guest_connects(self, room: int) -> Socket:
        self.next_port += 1
        stream = FakeStream(room)
        self.guest.backend.streams[80] = stream
        socket = self.table[self.next_port, 80] = Socket(self.next_port, 80, stream)
        self.send(socket, Op.REQUEST)
        self.deliver()
        return socket

    @rule(target=sockets, room=st.integers(0, 500))
    def host_connects(self, room: int) -> Socket:
        stream = FakeStream(room)
        connection = self.guest.device.connect(22, stream)
        socket = self.table[22, connection.host_port] = Socket(22, connection.host_port, stream)
        self.deliver()
        return socket

    @rule(socket=consumes(sockets))
    def host_hangs_up(self, socket: Socket) -> None:
        socket.stream.finish("hang up")

    @rule(socket=consumes(sockets))
    def guest_closes(self, socket: Socket) -> None:
        if socket.is_open and not socket.is_over:
            socket.ended = SHUTDOWN_BOTH
            self.send(socket, Op.SHUTDOWN, flags=SHUTDOWN_BOTH)
            self.deliver()

    # -- what the host's programs do

    @rule(socket=sockets, size=st.integers(1, 30_000))
    def host_writes(self, socket: Socket, size: int) -> None:
        if socket.stream.at_end is None and not socket.stream.is_closed:
            data = self.fresh(size)
            socket.offered += data
            socket.stream.put(data)

    @rule(socket=sockets, size=st.integers(1, 400_000))
    def host_reads(self, socket: Socket, size: int) -> None:
        socket.stream.room += size
        socket.stream.poll()

    @rule(socket=sockets)
    def host_ends(self, socket: Socket) -> None:
        if socket.stream.at_end is None:
            socket.stream.finish()

    # -- what the guest's programs do

    @rule(socket=sockets, size=st.integers(1, 70_000), chunk=st.integers(1, 65536))
    def guest_writes(self, socket: Socket, size: int, chunk: int) -> None:
        while size and socket.is_open and not socket.is_over and not socket.ended & SHUTDOWN_SEND:
            count = min(size, max(chunk, 1000), socket.credit)
            if socket.peer_ended & SHUTDOWN_RECEIVE or count <= 0:
                break
            data = self.fresh(count)
            socket.written += data
            self.send(socket, Op.RW, data)
            size -= count

    @rule(socket=sockets, size=st.integers(1, 20_000))
    def guest_reads(self, socket: Socket, size: int) -> None:
        socket.read += socket.unread[:size]
        del socket.unread[:size]
        if socket.is_open and not socket.is_over:
            self.send(socket, Op.CREDIT_UPDATE)

    @rule(socket=sockets)
    def guest_asks_for_credit(self, socket: Socket) -> None:
        if socket.is_open and not socket.is_over:
            self.send(socket, Op.CREDIT_REQUEST)

    @rule(socket=sockets, flag=st.sampled_from([SHUTDOWN_SEND, SHUTDOWN_RECEIVE]))
    def guest_ends(self, socket: Socket, flag: int) -> None:
        if socket.is_open and not socket.is_over:
            socket.ended |= flag
            self.send(socket, Op.SHUTDOWN, flags=socket.ended)

    # -- packets

    @rule()
    def deliver(self) -> None:
        """The guest takes everything that is there for it."""
        for packet in self.guest.receive():
            self.handle(packet)
        assert self.guest.driver.failure is None, self.guest.driver.failure

    @rule(count=st.integers(1, 4))
    def deliver_some(self, count: int) -> None:
        """The guest gives few buffers, so that the device waits for more."""
        if not self.guest.given:
            self.guest.give(min(count, self.guest.size // 2))
            self.guest.collect()
            while self.guest.inbox:
                self.handle(self.guest.inbox.popleft())

    def handle(self, packet: Packet) -> None:
        header = packet.header
        assert (header.src_cid, header.dst_cid, header.type) == (HOST_CID, GUEST_CID, STREAM)
        socket = self.table[header.dst_port, header.src_port]
        if header.op == Op.RST:
            socket.is_over = True
            return
        assert not socket.is_over, "a packet of a connection that is over"
        assert header.buf_alloc == BUFFER_SIZE
        assert socket.peer_fwd_cnt <= header.fwd_cnt <= len(socket.written)
        socket.peer_buf_alloc, socket.peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        if header.op == Op.REQUEST:
            socket.is_open = True
            self.send(socket, Op.RESPONSE)
        elif header.op == Op.RESPONSE:
            assert not socket.is_open
            socket.is_open = True
        elif header.op == Op.RW:
            assert packet.data, "a data packet without data"
            assert not socket.peer_ended & SHUTDOWN_SEND, "data after the end"
            socket.unread += packet.data
            assert len(socket.unread) <= GUEST_ROOM, "the guest's credit is overdrawn"
        elif header.op == Op.SHUTDOWN:
            assert header.flags & socket.peer_ended == socket.peer_ended
            socket.peer_ended = header.flags
            if header.flags == SHUTDOWN_BOTH:
                socket.is_over = True
                self.send(socket, Op.RST)
        elif header.op == Op.CREDIT_REQUEST:
            self.send(socket, Op.CREDIT_UPDATE)
        else:
            assert header.op == Op.CREDIT_UPDATE

    @invariant()
    def bytes_are_in_order(self) -> None:
        for socket in getattr(self, "table", {}).values():
            assert socket.written.startswith(socket.stream.taken)
            assert socket.offered.startswith(socket.read + socket.unread)

    def teardown(self) -> None:
        """Everybody reads on to the end: what was written has arrived."""
        if not hasattr(self, "guest"):
            return
        for _ in range(3000):
            self.deliver()
            moved = False
            for socket in self.table.values():
                socket.stream.room = 1 << 30
                before = len(socket.stream.taken), len(socket.stream.waiting)
                socket.stream.poll()
                moved |= before != (len(socket.stream.taken), len(socket.stream.waiting)) or bool(socket.unread)
                if socket.unread:
                    self.guest_reads(socket, GUEST_ROOM)
            if not moved:
                break
        self.deliver()
        for socket in self.table.values():
            if socket.stream.at_end != "hang up":
                assert not socket.peer_ended & SHUTDOWN_RECEIVE or socket.ended & SHUTDOWN_SEND
                assert socket.stream.taken == socket.written
            if not socket.is_over and not socket.ended & SHUTDOWN_RECEIVE:
                assert socket.read == socket.offered


ModelGuest.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
test_guest_and_host_exchange_exactly_what_they_wrote = ModelGuest.TestCase


PORTS = st.sampled_from([0, 1, 22, 80, 1 << 30, (1 << 30) + 1, 0xFFFF_FFFF])
NUMBERS = st.sampled_from([0, 1, 2, 3, 10, 1 << 18, 0x7FFF_FFFF, 0xFFFF_FFFF]) | st.integers(0, 0xFFFF_FFFF)
HEADERS = st.builds(
    lambda *fields: HEADER.pack(*fields),
    st.sampled_from([GUEST_CID] * 6 + [0, 2, 1 << 63]), st.sampled_from([HOST_CID] * 6 + [1, 0xFFFF_FFFF]),
    PORTS, PORTS, st.sampled_from([0, 1, 5, 64, 0xFFFF_FFFF]), st.sampled_from([STREAM] * 6 + [0, 2]),
    st.integers(0, 9), NUMBERS, NUMBERS, NUMBERS,
)
EVENTS = st.one_of(
    st.tuples(st.just("packet"), HEADERS, st.sampled_from([b"", b"12345", bytes(64)]), st.integers(0, 50)),
    st.tuples(
        st.just("rubbish"), st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=3), st.integers(0, 2)
    ),
    st.tuples(st.just("buffers"), st.lists(st.integers(1, 100), min_size=1, max_size=3)),
    st.tuples(st.just("buffers"), st.just([4096])),
    st.tuples(st.just("connect"), PORTS),
    st.tuples(st.just("answer"), st.booleans()),
    st.tuples(st.just("host"), st.integers(0, 6), st.sampled_from(["write", "read", "end", "hang up", "break"])),
    st.tuples(st.just("event"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.integers(1, 10)),
)


class Rubbish:
    """Does what the fuzzer says to one device."""

    def __init__(self) -> None:
        self.guest = Guest(FakeBackend(), FakeClock(), size=8, memory=128 << 10)
        self.streams: list[FakeStream] = []

    def new_stream(self) -> FakeStream:
        self.streams.append(FakeStream(room=3))
        return self.streams[-1]

    def packet(self, header: bytes, data: bytes, split: int) -> None:
        """A header in front of its data, cut into two buffers somewhere."""
        whole = header + data
        self.guest.driver.send(TX, [part for part in (whole[:split], whole[split:]) if part])

    def rubbish(self, parts: list[bytes], queue: int) -> None:
        self.guest.driver.send(queue, parts)

    def buffers(self, sizes: list[int]) -> None:
        self.guest.driver.send(RX, (), sizes)

    def connect(self, port: int) -> None:
        try:
            self.guest.device.connect(port, self.new_stream())
        except NotReady:
            self.streams.pop()

    def answer(self, accept: bool) -> None:
        for connection in self.guest.backend.asked:
            if accept:
                self.guest.device.accept(connection, self.new_stream())
            else:
                self.guest.device.refuse(connection, "no")
        self.guest.backend.asked.clear()

    def host(self, number: int, what: str) -> None:
        for stream in self.streams[number : number + 1]:
            if stream.is_closed:
                continue
            stream.waiting += b"bytes" * 100 if what == "write" and not stream.at_end else b""
            stream.room += 1000 if what == "read" else 0
            stream.broken |= what == "break"
            stream.at_end = what if what in ("end", "hang up") else stream.at_end
            stream.poll()

    def event(self, size: int) -> None:
        if size:
            self.guest.driver.send(EVENT, (), [size])
        else:
            self.guest.device.transport_reset()

    def wait(self, seconds: int) -> None:
        self.guest.clock.advance(seconds * 1_000_000_000)


@pytest.mark.timeout(0)
@given(st.lists(EVENTS, max_size=60))
@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
def test_rubbish_never_escapes_as_an_exception(events: list[tuple]) -> None:  # type: ignore[type-arg]
    fuzzer = Rubbish()
    driver = fuzzer.guest.driver
    for name, *arguments in events:
        try:
            getattr(fuzzer, name)(*arguments)
        except IndexError:                  # the test's rings are full; the device cannot raise that: see below
            assert not all(ring._free for ring in driver.rings)
        assert not driver.memory.unreported()
        assert len(fuzzer.guest.device._resets) <= MOST_RESETS + len(fuzzer.streams)
        for queue in RX, TX:
            driver.rings[queue].used()
        if driver.failure:
            assert not fuzzer.guest.device._connections
            assert all(stream.is_closed for stream in fuzzer.streams)
            break
    fuzzer.guest.device.close()
    assert all(stream.is_closed for stream in fuzzer.streams)
    assert not fuzzer.guest.device._deadlines
